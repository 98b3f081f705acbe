//! Settings of section `[distributed]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// More than one process (section `[distributed]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedSettings {
    /// Seconds that a rank waits for the others within a step before it names those that are silent and gives up.
    #[schemars(range(min = 1))]
    pub timeout_s: u64,
    /// The same where one rank works and others wait, or shares differ: files, evaluation, the knowledge basis.
    #[schemars(range(min = 1))]
    pub phase_timeout_s: u64,
    /// Whether gradients leave for their sum while the last pass of a step still goes backward (null: those on GPUs, where
    /// ranks are on several machines and the way between them is long).
    pub overlap: Option<bool>,
    /// Steps between two checks that all ranks hold the same numbers, to the bit (0: never).
    pub check_every: u64,
}

impl Default for DistributedSettings {
    fn default() -> Self {
        Self { timeout_s: 30, phase_timeout_s: 600, overlap: None, check_every: 100 }
    }
}

impl DistributedSettings {
    /// The limits within a step, and of a phase.
    pub fn limits(&self) -> (Duration, Duration) {
        (Duration::from_secs(self.timeout_s), Duration::from_secs(self.phase_timeout_s))
    }
}
