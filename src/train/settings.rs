//! Settings of the loop: sections `[train]` and `[checkpoint]`.

use super::schedule::Schedule;
use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long, how large, how fast (section `[train]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSettings {
    /// Optimizer steps.
    pub steps: u64,
    /// Training examples of each task in every step, by task name. Empty: `batch` examples a step,
    /// shared among the tasks in proportion to their rows.
    pub batch_per_task: BTreeMap<String, usize>,
    /// Training examples in every step when `batch_per_task` is empty.
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// Most tokens in one forward and backward pass; a step with more is accumulated over several
    /// passes. 0: everything in one pass.
    pub micro_batch_tokens: usize,
    /// Leaves that a step is cut into, to be shared out among ranks; sums are taken in an order that depends on this number
    /// and on nothing else. Fixed when a run starts. 0: as many as there are ranks, rounded up to a power of two.
    pub shards: usize,
    /// Learning rate of the adapted layers at the top of the schedule.
    #[schemars(range(min = 0))]
    pub lr: f64,
    /// Shape of the schedule after the warm-up.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0 to `lr`.
    pub warmup_steps: u64,
    /// The schedule ends at `lr` times this.
    #[schemars(range(min = 0, max = 1))]
    pub final_lr_ratio: f64,
    /// Keep only layer inputs of the forward pass and compute the rest again in the backward pass.
    pub activation_checkpointing: bool,
    /// Validate every so many steps (0: never).
    pub validate_every: u64,
    /// Validation records of each task that are ranked (0: all).
    pub validate_records: usize,
    /// The validation metric that chooses the best checkpoint: `loss`, or a ranking metric such as
    /// `ndcg@10` (the mean over tasks), or `TASK.ndcg@10`.
    pub best_metric: String,
    /// Stop after so many validations without a better `best_metric` (0: never).
    pub patience: u64,
    /// Stop after so many steps in a row with a NaN or infinite loss or gradient; the offending
    /// batch is written to the run directory. Single ones are skipped and counted.
    pub max_bad_steps: u64,
    /// Gradient-only passes over training batches before step 1, to find the first bases.
    pub probe_batches: u64,
    /// Rank the test records and measure general knowledge before training, for the table at the end.
    pub evaluate_before: bool,
    /// The same after training.
    pub evaluate_after: bool,
    /// Write the tuned model as a Hugging Face directory (`model/` in the run directory) at the end.
    pub export: bool,
    /// Scale every step to the update norm of the same step of this run. Empty: no step is scaled.
    pub match_step: String,
}

impl TrainSettings {
    /// The learning rate of step `index` (from 0) over that at the top of the schedule. Warm-up begins at zero
    /// (`from_zero`, published) or one step above, so that the first step moves too.
    pub fn rate(&self, index: u64, from_zero: bool) -> f64 {
        let shift = u64::from(self.warmup_steps > 0 && !from_zero);
        self.schedule.factor(index + shift, self.warmup_steps, self.steps + shift, self.final_lr_ratio)
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_per_task: BTreeMap::new(),
            batch: 64,
            micro_batch_tokens: 16384,
            shards: 0,
            lr: 1e-3,
            schedule: Schedule::Cosine,
            warmup_steps: 20,
            final_lr_ratio: 0.05,
            activation_checkpointing: false,
            validate_every: 200,
            validate_records: 512,
            best_metric: "ndcg@10".into(),
            patience: 0,
            max_bad_steps: 5,
            probe_batches: 8,
            evaluate_before: true,
            evaluate_after: true,
            export: true,
            match_step: String::new(),
        }
    }
}

impl TrainSettings {
    /// Checks what the bounds of single settings cannot say.
    ///
    /// # Errors
    /// A usage error that names the setting.
    pub fn validate(&self) -> Result<()> {
        if let Some((task, _)) = self.batch_per_task.iter().find(|(_, examples)| **examples == 0) {
            return Err(Error::usage(format!("0 examples a step of task `{task}`"))
                .at("train.batch_per_task")
                .remedy("give at least 1, or leave the task out with data.tasks"));
        }
        if self.patience > 0 && self.validate_every == 0 {
            return Err(Error::usage("patience counts validations, and there are none")
                .at("train.patience")
                .remedy("set train.validate_every, or train.patience = 0"));
        }
        Ok(())
    }
}

/// What is saved, and how often (section `[checkpoint]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSettings {
    /// Save every so many steps (0: only at the end and when interrupted).
    pub every: u64,
    /// Keep the newest so many checkpoints (the best one is always kept).
    pub keep: usize,
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        Self { every: 500, keep: 2 }
    }
}
