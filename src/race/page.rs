//! The page of a race.

use super::field::Entry;
use super::findings::{Estimate, Findings};
use super::tables::{cells, chosen, equal, gradients, interference, layers, missing};
use super::verdict::{Race, verdict};
use crate::report::{Curve, CurveFigure, CurvePage, CurvePoint};

/// Everything that a race found, to be rendered.
pub fn page(race: &Race) -> CurvePage {
    let open = [chosen(race, usize::MAX), equal(race), interference(race), missing(race)];
    let folded = [gradients(race), layers(race), Some(cells(race))];
    let tables = open.into_iter().flatten().map(|t| (t, false));
    CurvePage {
        kind: "race".into(),
        heading: "Ranking against divergence".into(),
        title: race.title.clone(),
        facts: race.facts.clone(),
        verdict: verdict(race),
        figures: race.findings.as_ref().map_or(Vec::new(), |found| figures(race, found)),
        tables: tables.chain(folded.into_iter().flatten().map(|t| (t, true))).collect(),
        notes: race.notes.iter().cloned().chain(reading(race)).collect(),
    }
}

/// The mean over tasks, then each task.
fn figures(race: &Race, found: &Findings) -> Vec<CurveFigure> {
    let mean = figure(race, found, "the mean over tasks".into(), &|number, _| Some(found.points[number]?.0));
    let tasks = race.field.tasks.iter().enumerate().map(|(task, name)| {
        let of = move |number: usize, _: &Entry| found.tasks.get(number)?.as_ref().map(|all| all[task]);
        figure(race, found, name.clone(), &of)
    });
    let all = std::iter::once(mean).chain(tasks).collect::<Vec<_>>();
    if race.field.tasks.len() == 1 { all.into_iter().skip(1).collect() } else { all }
}

fn figure(
    race: &Race,
    found: &Findings,
    what: String,
    quality: &dyn Fn(usize, &Entry) -> Option<Estimate>,
) -> CurveFigure {
    let curve = |name: &str| {
        let points = race.field.places(name, None).into_iter().filter_map(|number| {
            let (entry, (_, kl)) = (&race.field.entries[number], found.points[number]?);
            let y = quality(number, entry)?;
            (kl.value > 0.0).then(|| CurvePoint {
                label: format!("lr {}", entry.lr),
                x: kl.value,
                y: y.value,
                x_interval: kl.interval,
                y_interval: y.interval,
                marked: found.methods.iter().any(|f| f.entry == number),
            })
        });
        Curve { label: name.into(), points: points.collect() }
    };
    CurveFigure {
        title: format!("{}, {what}", race.metric),
        caption: "Up and to the left is better: ranks better, forgets less. A point a learning rate, bars are 95 % \
                  intervals, the ring is the rate that validation chose."
            .into(),
        x: "KL from the base model on held-out text, nats a token".into(),
        linear: false,
        curves: race.grid.methods.iter().map(|m| curve(&m.name)).collect(),
    }
}

/// How to read the numbers.
fn reading(race: &Race) -> Vec<String> {
    let tests = race.findings.as_ref().map_or(0, |f| f.tests);
    let within = 100.0 * race.within;
    vec![
        format!(
            "Learning rates are chosen on validation records alone: of each method the smallest that reaches {:.0} % of \
             its best mean over tasks and seeds. Everything shown is of test records, and of general text that nothing \
             was learned from. The method is chosen by the divergence that is shown: of many, the best one's is a \
             little flattered.",
            100.0 - within
        ),
        "Cells of one method differ in learning rate and seed only; cells of all methods have the same steps, the same rows \
         in the same steps by seed, and the same knowledge basis."
            .into(),
        "At equal ranking: log KL of each curve, linear in ranking quality between neighbouring learning rates. Outside a \
         curve nothing is said."
            .into(),
        "Intervals: 95 % of the values when seeds, requests of every task and general texts are each drawn again with \
         replacement, the same draw for all methods (Owen 2007). With one seed they hold the luck of requests and texts, \
         not that of training."
            .into(),
        format!(
            "Tests: ranking by Fisher's randomisation of the paired differences of every request, in the mean over seeds; \
             divergence by the share of those draws in which the order turns. All {tests} tests of the page are one family \
             (Holm 1979)."
        ),
        "A difference in divergence is called more than luck when its corrected p is below .05 and every one of at least \
         three seeds agrees, against plain and against every control of the method."
            .into(),
    ]
}
