//! Races: how they are laid out, what may be said of them, and running them.

mod findings;
mod layout;
mod running;
mod statistics;

use gems_engine::race::{Entry, Field, Outcome};

/// A result with these values of every request of the tasks `rec` and `search`, and this divergence of every text of
/// ten tokens. What was measured on validation records is the mean of the requests.
fn outcome(rec: &[f64], search: &[f64], texts: &[f64]) -> Outcome {
    let tasks = [("rec", rec), ("search", search)];
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    Outcome {
        metric: "ndcg@10".into(),
        valid: tasks.iter().map(|(name, v)| (name.to_string(), mean(v))).collect(),
        requests: tasks.iter().map(|(name, v)| (name.to_string(), v.to_vec())).collect(),
        divergence: texts.iter().map(|kl| 10.0 * kl).collect(),
        tokens: vec![10.0; texts.len()],
        ..Outcome::default()
    }
}

/// An entry of a method with one run a seed.
fn entry(method: &str, alone: Option<&str>, lr: f64, runs: Vec<Outcome>) -> Entry {
    Entry {
        method: method.into(),
        alone: alone.map(String::from),
        lr,
        runs: runs.into_iter().map(Some).collect(),
    }
}

fn field(seeds: u64, entries: Vec<Entry>) -> Field {
    Field { tasks: vec!["rec".into(), "search".into()], seeds: (0..seeds).collect(), entries }
}
