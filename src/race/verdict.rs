//! What to take, in sentences: what the tests allow and nothing else.

use super::curve::Beyond;
use super::field::Field;
use super::findings::{ENOUGH_SEEDS, Equal, Finding, Findings, Interference, SIGNIFICANT, Versus};
use super::grid::{Cell, Grid};
use super::methods::PLAIN;
use super::outcome::Outcome;

/// A race that was run, as far as it was.
#[derive(Debug, Clone)]
pub struct Race {
    /// What raced, in a few words.
    pub title: String,
    /// (name, value).
    pub facts: Vec<(String, String)>,
    /// The grid.
    pub grid: Grid,
    /// All tasks, in order: they number the names of cells.
    pub tasks: Vec<String>,
    /// The results.
    pub field: Field,
    /// What was found; none where plain has no result.
    pub findings: Option<Findings>,
    /// The base model before the first step.
    pub base: Option<Outcome>,
    /// Cells without a result and why.
    pub missing: Vec<(Cell, String)>,
    /// The adapted layers, in the order in which logs tell of them; empty where they are not known.
    pub layers: Vec<String>,
    /// The ranking metric.
    pub metric: String,
    /// Share of the best validation value that a smaller learning rate may lack.
    pub within: f64,
    /// What else the reader should know.
    pub notes: Vec<String>,
}

/// The sentences, the most important first.
pub fn verdict(race: &Race) -> Vec<String> {
    let Some(found) = &race.findings else {
        return vec![
            "Nothing can be said: the plain learning rate, which all methods are held against, has no result with \
             all seeds."
                .into(),
        ];
    };
    let mut all = vec![take(race, found)];
    all.extend(best_ranking(race, found));
    all.extend(found.interference.iter().map(|i| interference(race, i)));
    all.extend(out_of_range(found));
    let edges: Vec<&str> = found.methods.iter().filter(|f| f.at_edge).map(|f| f.method.as_str()).collect();
    if !edges.is_empty() {
        all.push(format!(
            "At an end of their learning rates, beyond which the best may lie: {}.",
            edges.join(", ")
        ));
    }
    if !race.missing.is_empty() {
        all.push(format!("{} cells have no result; they are listed below.", race.missing.len()));
    }
    all
}

/// The method's advantage over plain at equal quality, where there is one.
fn advantage(finding: &Finding) -> Option<(f64, &Versus)> {
    let versus = finding.against.iter().find(|v| v.other == PLAIN)?;
    match versus.equal {
        Equal::Times(times, _) => Some((times.value, versus)),
        Equal::Beyond { .. } => None,
    }
}

fn take(race: &Race, found: &Findings) -> String {
    let seeds = race.field.seeds.len();
    let plain = &found.methods[0];
    let mut ahead: Vec<(f64, &Finding)> =
        found.methods.iter().filter_map(|f| Some((advantage(f)?.0, f))).collect();
    ahead.sort_by(|a, b| b.0.total_cmp(&a.0));
    ahead.retain(|(times, _)| *times > 1.0);
    let proven = |f: &Finding| f.missing.is_empty() && f.against.iter().all(|v| v.is_better(seeds));
    let reference = format!("{} {:.3} in the mean over tasks", race.metric, plain.quality.value);
    let fallback =
        format!("take {PLAIN} at learning rate {} ({reference}, KL {})", plain.lr, kl(plain.kl.value));
    if seeds < ENOUGH_SEEDS {
        let lead =
            ahead.first().map_or("nothing is ahead of a smaller learning rate".into(), |(times, f)| {
                format!("{} is ahead, with {times:.1} times less divergence at equal ranking", f.method)
            });
        return format!(
            "With {} nobody can tell a method from the luck of training: {lead}, and that is no claim. Race at least \
             {ENOUGH_SEEDS} seeds; until then, {fallback}.",
            count(seeds, "seed")
        );
    }
    let Some((_, best)) = ahead.iter().find(|(_, f)| proven(f)) else {
        let near = ahead.first().map_or(String::new(), |(times, f)| {
            format!(" The nearest is {}, {times:.1} times lower: {}.", f.method, why_not(f, seeds))
        });
        return format!("On this data {fallback}: no method is better by more than luck.{near}");
    };
    let mut text = format!(
        "On this data take {} at learning rate {}. At the ranking that {PLAIN} reaches at {} ({reference}) it is {}.",
        best.method,
        best.lr,
        plain.lr,
        best.against.iter().map(less).collect::<Vec<_>>().join("; ")
    );
    if let Some((gain, test)) = best.gain {
        text += &format!(
            " At its own learning rate it ranks {} ({:+.3}, p = {}) with KL {} instead of {}. The differences in divergence \
             are more than luck.",
            if test.holm >= SIGNIFICANT {
                "alike"
            } else if gain.value > 0.0 {
                "better"
            } else {
                "worse"
            },
            gain.value,
            p_value(test.holm),
            kl(best.kl.value),
            kl(plain.kl.value)
        );
    }
    for (times, f) in ahead.iter().take_while(|(_, f)| f.method != best.method) {
        text += &format!(" {} is lower still ({times:.1} times), but {}.", f.method, why_not(f, seeds));
    }
    text
}

/// `16.3 times nearer to the base model than plain (15.2 to 17.4; p = .02)`.
fn less(versus: &Versus) -> String {
    match versus.equal {
        Equal::Times(times, test) => {
            let interval =
                times.interval.map_or(String::new(), |(low, high)| format!("{low:.1} to {high:.1}; "));
            let p = p_value(test.holm);
            format!(
                "{:.1} times nearer to the base model than {} ({interval}p = {p})",
                times.value, versus.other
            )
        }
        Equal::Beyond { .. } => format!("not compared with {}, which does not rank alike", versus.other),
    }
}

/// Why a lower divergence is no claim.
fn why_not(finding: &Finding, seeds: usize) -> String {
    if !finding.missing.is_empty() {
        return format!("its control {} is not in the race", finding.missing.join(", "));
    }
    let open: Vec<String> = finding
        .against
        .iter()
        .filter(|v| !v.is_better(seeds))
        .map(|v| match v.equal {
            Equal::Beyond { .. } => format!("{} does not have this ranking quality", v.other),
            Equal::Times(times, _) if times.value <= 1.0 => format!("{} is as low or lower", v.other),
            Equal::Times(_, test) if test.holm >= SIGNIFICANT => {
                format!("against {} p = {}", v.other, p_value(test.holm))
            }
            Equal::Times(..) => {
                format!("against {} only {} of {} agree", v.other, v.seeds_agree, count(seeds, "seed"))
            }
        })
        .collect();
    open.join(", ")
}

fn best_ranking(race: &Race, found: &Findings) -> Option<String> {
    let best = found.methods.iter().max_by(|a, b| a.quality.value.total_cmp(&b.quality.value))?;
    let (gain, test) = best.gain?;
    let luck = match (race.field.seeds.len() < ENOUGH_SEEDS, test.holm < SIGNIFICANT) {
        (true, _) => ", of too few seeds to claim it",
        (_, true) => "",
        _ => ", which may be luck",
    };
    Some(format!(
        "What ranks best is {} at {}: {:.3}, {:+.3} against {PLAIN} (p = {}{luck}), with KL {}.",
        best.method,
        best.lr,
        best.quality.value,
        gain.value,
        p_value(test.holm),
        kl(best.kl.value)
    ))
}

fn interference(race: &Race, found: &Interference) -> String {
    let few = race.field.seeds.len() < ENOUGH_SEEDS;
    let mut text = format!("Alone, {} reaches {:.3}", found.task, found.alone.value);
    let plain = found.together.iter().find(|t| t.method == PLAIN);
    if let Some(t) = plain {
        text += &format!(
            "; with the other tasks {PLAIN} changes that by {:+.3} (p = {})",
            t.difference.value,
            p_value(t.test.holm)
        );
    }
    let loses = |t: &&super::Together| t.test.holm < SIGNIFICANT && t.difference.value < 0.0;
    let others: Vec<&super::Together> = found.together.iter().filter(|t| !loses(t)).collect();
    text += &match plain.is_some_and(|t| loses(&t)) {
        _ if few => ": too few seeds to claim anything".into(),
        false => ": no loss by more than luck".to_string(),
        true if others.is_empty() => ", and every method loses".into(),
        true => {
            let names: Vec<&str> = others.iter().map(|t| t.method.as_str()).collect();
            format!("; no loss by more than luck with {}", names.join(", "))
        }
    };
    text + "."
}

fn out_of_range(found: &Findings) -> Option<String> {
    let names = |wanted: Beyond| -> Vec<&str> {
        let is = |f: &&Finding| {
            let versus = f.against.iter().find(|v| v.other == PLAIN);
            versus.is_some_and(|v| matches!(v.equal, Equal::Beyond { other: false, side } if side == wanted))
        };
        found.methods.iter().filter(is).map(|f| f.method.as_str()).collect()
    };
    let (under, over) = (names(Beyond::NotReached), names(Beyond::Surpassed));
    let mut parts = Vec::new();
    if !under.is_empty() {
        parts.push(format!("{PLAIN}'s ranking is not reached by {}", under.join(", ")));
    }
    if !over.is_empty() {
        parts.push(format!("it is surpassed at every learning rate by {}", over.join(", ")));
    }
    (!parts.is_empty()).then(|| format!("Not compared at equal ranking: {}.", parts.join("; ")))
}

/// A divergence as people read it.
pub(super) fn kl(value: f64) -> String {
    if value >= 0.01 { format!("{value:.3}") } else { format!("{value:.1e}") }
}

/// A p-value: never 0.
pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 { "<.001".into() } else { format!("{p:.3}").trim_start_matches('0').to_string() }
}

fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}
