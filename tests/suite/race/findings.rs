//! What may be said of results whose truth is known.

use super::{entry, field, outcome};
use gems_engine::eval::significance::holm;
use gems_engine::race::{
    Cell, Entry, Equal, Estimate, Field, Finding, Grid, Method, Methods, Race, Test, Versus, choose,
    findings, page, text, verdict,
};

/// Small differences between requests, texts and seeds, without a pattern in common.
fn noise(seed: usize, unit: usize) -> f64 {
    0.01 * ((seed * 7 + unit * 13) as f64).sin()
}

/// Entries of a method: at three learning rates quality .4, .5, .6 + `gain`, and KL .1, .2, .4 over `times`.
fn raced(method: &str, alone: Option<&str>, seeds: usize, gain: f64, times: f64) -> Vec<Entry> {
    let at = |step: i32| {
        let run = |seed: usize| {
            let quality = 0.4 + 0.1 * f64::from(step) + gain;
            let requests: Vec<f64> = (0..60).map(|i| quality + noise(seed, i)).collect();
            let kl = 0.1 * 2f64.powi(step) / times;
            let texts: Vec<f64> = (0..30).map(|i| kl * (1.0 + noise(seed + 3, i))).collect();
            outcome(&requests, &requests, &texts)
        };
        entry(method, alone, 1e-3 * 2f64.powi(step), (0..seeds).map(run).collect())
    };
    (0..3).map(at).collect()
}

fn methods(names: &[(&str, &[&str])]) -> Vec<Method> {
    let one = |(name, controls): &(&str, &[&str])| Method {
        name: name.to_string(),
        says: String::new(),
        rates: vec![1.0, 2.0, 4.0],
        controls: controls.iter().map(|c| c.to_string()).collect(),
        settings: toml::Table::new(),
    };
    names.iter().map(one).collect()
}

fn race(field: Field, methods: Vec<Method>) -> Race {
    let found = findings(&field, &methods, 0.02);
    let seeds = field.seeds.clone();
    Race {
        layers: Vec::new(),
        title: "model on <data>".into(),
        facts: vec![("steps of a cell".into(), "30".into())],
        grid: Grid::new(methods, 1e-3, &[], &seeds, 30).unwrap(),
        tasks: field.tasks.clone(),
        findings: found,
        base: None,
        missing: Vec::new(),
        metric: "ndcg@10".into(),
        within: 0.02,
        notes: Vec::new(),
        field,
    }
}

fn finding<'a>(race: &'a Race, method: &str) -> &'a Finding {
    race.findings.as_ref().unwrap().methods.iter().find(|f| f.method == method).unwrap()
}

#[test]
fn equal_ranking_is_compared_and_the_claim_needs_its_controls() {
    let all = |control: f64| {
        let entries = [
            raced("plain", None, 3, 0.0, 1.0),
            raced("half", None, 3, 0.05, 2.0),
            raced("control", None, 3, 0.05, control),
        ];
        race(field(3, entries.concat()), methods(&[("plain", &[]), ("half", &["control"]), ("control", &[])]))
    };
    let won = all(1.2);
    // Plain is chosen at .004 with quality .6. There the others lie halfway between .55 and .65: KL sqrt(.2 .4) / times
    // instead of .4.
    let versus = &finding(&won, "half").against[0];
    let Equal::Times(times, test) = versus.equal else { panic!("{versus:?}") };
    assert!((times.value - 2.0 * 2f64.sqrt()).abs() < 0.01, "{times:?}");
    let (low, high) = times.interval.unwrap();
    assert!(low < times.value && times.value < high && test.holm < 0.05 && versus.seeds_agree == 3);
    let Equal::Times(against, _) = finding(&won, "half").against[1].equal else { panic!() };
    assert!((against.value - 2.0 / 1.2).abs() < 0.01, "{against:?}");
    let said = verdict(&won);
    assert!(said[0].starts_with("On this data take half at learning rate 0.004."), "{said:?}");
    assert!(
        said[0].contains("2.8 times nearer to the base model than plain") && said[0].contains("1.7 times")
    );
    // A control that is as good: its method may not be claimed; the control itself is.
    let lost = verdict(&all(2.0));
    assert!(lost[0].starts_with("On this data take control at"), "{lost:?}");
    // A control that does not race.
    let entries = [raced("plain", None, 3, 0.0, 1.0), raced("half", None, 3, 0.05, 2.0)];
    let alone =
        verdict(&race(field(3, entries.concat()), methods(&[("plain", &[]), ("half", &["control"])])));
    assert!(
        alone[0].contains("take plain at") && alone[0].contains("its control control is not in the race")
    );
}

#[test]
fn few_seeds_claim_nothing() {
    for seeds in [1, 2] {
        let entries = [raced("plain", None, seeds, 0.0, 1.0), raced("half", None, seeds, 0.05, 2.0)];
        let one = race(field(seeds as u64, entries.concat()), methods(&[("plain", &[]), ("half", &[])]));
        let said = verdict(&one);
        assert!(said[0].contains("nobody can tell a method from the luck of training"), "{said:?}");
        assert!(
            said[0].contains("take plain at") && !said.iter().any(|s| s.contains("more than luck.")),
            "{said:?}"
        );
    }
}

#[test]
fn one_seed_that_disagrees_is_no_claim() {
    let mut bad = raced("half", None, 3, 0.05, 2.0);
    let worse = raced("half", None, 3, 0.05, 0.5);
    bad.iter_mut().zip(&worse).for_each(|(entry, worse)| entry.runs[2] = worse.runs[2].clone());
    let entries = [raced("plain", None, 3, 0.0, 1.0), bad];
    let found = race(field(3, entries.concat()), methods(&[("plain", &[]), ("half", &[])]));
    assert_eq!(finding(&found, "half").against[0].seeds_agree, 2);
    assert!(verdict(&found)[0].contains("no method is better by more than luck"), "{:?}", verdict(&found));
}

#[test]
fn a_quality_that_is_not_reached_is_said() {
    let entries = [
        raced("plain", None, 3, 0.0, 1.0),
        raced("weak", None, 3, -0.3, 9.0),
        raced("strong", None, 3, 0.3, 0.5),
    ];
    let found = race(field(3, entries.concat()), methods(&[("plain", &[]), ("weak", &[]), ("strong", &[])]));
    let said = verdict(&found).join("\n");
    assert!(said.contains(
        "plain's ranking is not reached by weak; it is surpassed at every learning rate by strong"
    ));
    let shown = text(&found);
    assert!(shown.contains("not reached") && shown.contains("surpassed"), "{shown}");
    assert!(matches!(finding(&found, "weak").against[0].equal, Equal::Beyond { other: false, .. }));
}

#[test]
fn the_rate_is_the_smallest_near_the_best_on_validation_records() {
    let mut f = field(1, raced("plain", None, 1, 0.0, 1.0));
    for (entry, valid) in f.entries.iter_mut().zip([0.97, 0.985, 1.0]) {
        for value in entry.runs[0].as_mut().unwrap().valid.values_mut() {
            *value = valid;
        }
    }
    let valid = |f: &Field| choose(f, &[0, 1, 2], |e| f.entries[e].valid("rec"), 0.02);
    assert_eq!(valid(&f), Some(1));
    assert_eq!(choose(&f, &[0, 1, 2], |e| f.entries[e].valid("rec"), 0.0), Some(2));
    // Test requests have no say: they would choose the last one.
    f.entries[1].runs[0] = None;
    assert_eq!(valid(&f), Some(2), "a rate without all seeds is not chosen");
}

#[test]
fn interference_is_together_minus_alone_and_all_tests_are_one_family() {
    let entries = [
        raced("plain", None, 3, 0.0, 1.0),
        raced("plain", Some("rec"), 3, 0.1, 1.0),
        raced("plain", Some("search"), 3, 0.0, 1.0),
        raced("half", None, 3, 0.1, 2.0),
    ];
    let found = race(field(3, entries.concat()), methods(&[("plain", &[]), ("half", &[])]));
    let findings = found.findings.as_ref().unwrap();
    let [rec, search] = findings.interference.as_slice() else { panic!() };
    let plain = rec.together.iter().find(|t| t.method == "plain").unwrap();
    assert!((rec.alone.value - 0.7).abs() < 0.01 && (plain.difference.value + 0.1).abs() < 1e-6, "{plain:?}");
    assert!(plain.test.holm < 0.05 && search.together[0].difference.value == 0.0);
    assert_eq!(search.together[0].test.p, 1.0);
    let said = verdict(&found).join("\n");
    assert!(
        said.contains("Alone, rec reaches 0.700; with the other tasks plain changes that by -0.100"),
        "{said}"
    );
    assert!(said.contains("no loss by more than luck with half"), "{said}");
    // Holm over the p-values of everything.
    let mut all = Vec::new();
    for f in &findings.methods {
        all.extend(f.gain.iter().map(|(_, t)| *t));
        all.extend(
            f.against.iter().filter_map(|v| if let Equal::Times(_, t) = v.equal { Some(t) } else { None }),
        );
    }
    for i in &findings.interference {
        all.extend(i.same_rate.iter().chain(&i.together).map(|t| t.test));
    }
    assert_eq!(all.len(), findings.tests);
    let corrected = holm(&all.iter().map(|t| t.p).collect::<Vec<_>>());
    assert!(all.iter().zip(corrected).all(|(t, want)| t.holm == want), "{all:?}");
}

#[test]
fn in_a_test_over_requests_every_task_weighs_as_much() {
    // scipy 1.17: permutation_test over [.30, -.10, .25, .40, .20] / 5 and [-.45, .20] / 2, 'samples', all patterns,
    // statistic the sum: p = 0.828125; unweighted 0.359375.
    let with = |d: f64| {
        let shifted = |values: &[f64]| values.iter().map(|v| 0.5 + d * v).collect::<Vec<_>>();
        outcome(&shifted(&[0.30, -0.10, 0.25, 0.40, 0.20]), &shifted(&[-0.45, 0.20]), &[0.1, 0.2])
    };
    let entries =
        vec![entry("plain", None, 0.001, vec![with(0.0)]), entry("other", None, 0.001, vec![with(1.0)])];
    let found = race(field(1, entries), methods(&[("plain", &[]), ("other", &[])]));
    let (gain, test) = finding(&found, "other").gain.unwrap();
    assert!((gain.value - 0.0425).abs() < 1e-12, "{gain:?}");
    assert_eq!(test.p, 0.828125);
}

#[test]
fn better_takes_a_test_and_every_one_of_three_seeds() {
    let better = |value: f64, holm: f64, agree: usize, seeds: usize| {
        let equal = Equal::Times(Estimate { value, interval: None }, Test { p: holm, holm });
        Versus { other: "plain".into(), equal, range: None, seeds_agree: agree }.is_better(seeds)
    };
    assert!(better(2.0, 0.01, 3, 3) && better(1.01, 0.049, 5, 5));
    for (value, holm, agree, seeds) in
        [(2.0, 0.01, 2, 3), (2.0, 0.05, 3, 3), (0.5, 0.01, 3, 3), (2.0, 0.01, 2, 2), (2.0, 0.01, 1, 1)]
    {
        assert!(!better(value, holm, agree, seeds), "{value} {holm} {agree} of {seeds}");
    }
}

#[test]
fn the_page_has_every_cell_and_the_terminal_eighty_columns() {
    let mut entries = [raced("plain", None, 3, 0.0, 1.0), raced("half", None, 3, 0.05, 2.0)].concat();
    entries[0].runs[1] = None;
    let mut whole =
        race(field(3, entries), methods(&[("plain", &[]), ("half", &["a-control-of-a-very-long-name"])]));
    let cell = Cell { method: "plain".into(), alone: None, lr: 0.001, seed: 1, steps: 30 };
    whole.missing = vec![(cell, "it fell over <b>because</b> of a very long reason ".repeat(4))];
    let html = page(&whole).render().unwrap();
    crate::report::check(&html);
    for entry in &whole.field.entries {
        for (seed, run) in entry.runs.iter().enumerate() {
            let value = match run {
                None => "<td>no result</td>".to_string(),
                Some(run) => format!("<td>{:.4}</td>", run.requests["rec"].iter().sum::<f64>() / 60.0),
            };
            let row = format!(
                "<tr><th scope=\"row\">{}</th><td>all</td><td>{}</td><td>{seed}</td>",
                entry.method, entry.lr
            );
            let at = html.find(&row).unwrap_or_else(|| panic!("{row}"));
            assert!(html[at..at + 600].contains(&value), "{row} {value}");
        }
    }
    assert!(html.contains("it fell over &lt;b&gt;because") && html.contains("model on &lt;data&gt;"));
    assert_eq!(
        html.matches("<svg width").count() + html.matches("<svg xmlns").count(),
        3,
        "mean, rec, search"
    );
    assert!(html.contains("half: 0.450 at 0.05 (lr 0.001)"), "described for those who do not see it");
    for line in text(&whole).lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    let nothing = race(field(3, Vec::new()), Methods::read(None).unwrap().all);
    assert!(verdict(&nothing)[0].starts_with("Nothing can be said"));
    crate::report::check(&page(&nothing).render().unwrap());
}
