//! Two runs on the same requests: which differences are more than luck.

use super::rank::Rankings;
use super::settings::EvaluateSettings;
use super::significance::{self, Comparison};
use serde::Serialize;

/// Metrics that runs are compared by, each at [`cutoff`].
const METRICS: [&str; 4] = ["ndcg", "hit", "mrr", "recall"];
/// Random sign patterns and bootstrap samples.
pub const RESAMPLES: usize = 10_000;
/// Share of the bootstrap means that lie in an interval.
pub const CONFIDENCE: f64 = 0.95;

/// One metric of one task, compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Paired {
    /// The split (`test`, or NAME of `test-NAME`).
    pub split: String,
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// Mean of the other run.
    pub theirs: f64,
    /// Mean of this run.
    pub ours: f64,
    /// Ours minus theirs: interval and p-value.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// The p-value corrected for all comparisons of the table (Holm).
    pub p_holm: f64,
}

/// The metrics by which requests are compared.
pub fn compared(settings: &EvaluateSettings) -> [String; 4] {
    METRICS.map(|metric| format!("{metric}@{}", cutoff(settings)))
}

/// The cut-off at which runs are compared: 10, or the largest there is.
fn cutoff(settings: &EvaluateSettings) -> usize {
    let largest = settings.k.iter().copied().max().unwrap_or(10);
    if settings.k.contains(&10) { 10 } else { largest }
}

/// Compares two runs' rankings of the same splits (name, theirs, ours), request by request.
pub fn compare_runs(
    splits: &[(&str, &Rankings, &Rankings)],
    tasks: &[String],
    settings: &EvaluateSettings,
    seed: u64,
) -> Vec<Paired> {
    let mut list = Vec::new();
    for (split, theirs, ours) in splits {
        for (number, task) in tasks.iter().enumerate() {
            for metric in compared(settings) {
                let [theirs, ours] = [theirs, ours].map(|r| r.values(number as u32, &metric));
                if theirs.is_empty() || theirs.len() != ours.len() {
                    continue;
                }
                let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
                list.push(Paired {
                    split: split.to_string(),
                    task: task.clone(),
                    metric,
                    theirs: mean(&theirs),
                    ours: mean(&ours),
                    comparison: significance::compare(&theirs, &ours, RESAMPLES, CONFIDENCE, seed),
                    p_holm: 1.0,
                });
            }
        }
    }
    let p: Vec<f64> = list.iter().map(|c| c.comparison.p).collect();
    list.iter_mut().zip(significance::holm(&p)).for_each(|(c, p)| c.p_holm = p);
    list
}
