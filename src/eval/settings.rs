//! Settings of evaluation: section `[evaluate]`.

use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How test records are ranked and what is reported (section `[evaluate]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSettings {
    /// Cut-offs of the metrics.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub k: Vec<usize>,
    /// What a record's targets are ranked among.
    pub candidates: Candidates,
    /// Most tokens in one forward pass.
    #[schemars(range(min = 1))]
    pub batch_tokens: usize,
    /// Test records of each task that are ranked (0: all).
    pub records: usize,
    /// Tokens of held-out general text (0: all).
    pub general_tokens: usize,
    /// Also report the non-standard metrics of published work, as `published_...`.
    pub published_metrics: bool,
}

impl EvaluateSettings {
    /// Checks what the bounds of single settings cannot say.
    ///
    /// # Errors
    /// A usage error that names the setting.
    pub fn validate(&self) -> Result<()> {
        match self.k.iter().enumerate().find(|(i, k)| self.k[..*i].contains(k)) {
            Some((_, twice)) => Err(Error::usage(format!("the cut-off {twice} is listed twice"))
                .at("evaluate.k")
                .remedy("list every cut-off once")),
            None => Ok(()),
        }
    }
}

/// What a record's targets are ranked among.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Candidates {
    /// The whole catalogue.
    Full,
    /// The record's negatives and its targets; a record without negatives is an error.
    Given,
}

impl Default for EvaluateSettings {
    fn default() -> Self {
        Self {
            k: vec![1, 5, 10, 20],
            candidates: Candidates::Full,
            batch_tokens: 4096,
            records: 0,
            general_tokens: 16384,
            published_metrics: false,
        }
    }
}
