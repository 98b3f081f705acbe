//! Learning rates over a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine down to `final_lr_ratio`.
    Cosine,
    /// A straight line down to `final_lr_ratio`.
    Linear,
    /// No change.
    Constant,
}

impl Schedule {
    /// The factor on the learning rate of step `index` (from 0): a linear rise from 0 over `warmup` steps, then,
    /// with the progress p through the remaining steps of `total`,
    /// `last + (1 - last) (1 + cos(pi p)) / 2`, `1 - (1 - last) p`, or 1
    /// (transformers' `get_cosine/linear/constant_schedule_with_warmup` for `last` 0).
    pub fn factor(self, index: u64, warmup: u64, total: u64, last: f64) -> f64 {
        if index < warmup {
            return index as f64 / warmup.max(1) as f64;
        }
        let p = (index - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Cosine => last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * p).cos()),
            Schedule::Linear => 1.0 - (1.0 - last) * p.min(1.0),
            Schedule::Constant => 1.0,
        }
    }
}
