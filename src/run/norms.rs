//! The lengths of another run's steps, to be matched step by step.

use crate::error::{Error, Result};
use crate::report::read;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Update norms of a run, as they were when a run that matches them began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepNorms {
    /// The run they are of.
    pub run: String,
    /// By step, from the first; `None` where the step has none (it was skipped).
    pub update_norms: Vec<Option<f64>>,
}

impl StepNorms {
    /// Those of the run in `run`.
    ///
    /// # Errors
    /// Not a run, or one that has not done a step.
    pub fn of(run: &Path) -> Result<Self> {
        let lines = read(&run.join("metrics.jsonl"))?;
        let mut update_norms = Vec::new();
        for line in &lines {
            let Some(step) = line.get("step").and_then(|s| s.as_u64()).filter(|s| *s > 0) else { continue };
            let at = step as usize - 1;
            if at > update_norms.len() + lines.len() {
                return Err(Error::data(format!("a line of step {step} among {} lines", lines.len()))
                    .at(run.join("metrics.jsonl").display()));
            }
            update_norms.resize(update_norms.len().max(at + 1), None);
            update_norms[at] = line.get("update_norm").and_then(|n| n.as_f64()).filter(|n| *n > 0.0);
        }
        if update_norms.iter().all(Option::is_none) {
            return Err(Error::usage("no update norms to match here")
                .at(run.display())
                .remedy("give the directory of a run that has trained"));
        }
        Ok(Self { run: run.display().to_string(), update_norms })
    }

    /// What a run of `steps` steps is to be told: where matching ends.
    pub fn ends_before(&self, steps: u64) -> Option<String> {
        let n = self.update_norms.len() as u64;
        let rest =
            if n + 1 == steps { format!("step {steps}") } else { format!("steps {} to {steps}", n + 1) };
        (n < steps).then(|| format!("{} has {n} steps: {rest} will not be matched to any", self.run))
    }
}
