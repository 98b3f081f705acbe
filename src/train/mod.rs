//! One optimizer step, the loop around it, checkpoints, the run directory, and the knowledge basis.

mod basis;
pub mod checkpoint;
mod plan;
pub mod run;
mod settings;
mod step;
mod trainer;
pub mod validation;

pub use basis::{knowledge_basis, largest_basis, needs_basis, rule_text};
pub use plan::{MemoryPlan, PlannedRun};
pub use settings::{CheckpointSettings, Schedule, TrainSettings};
pub use step::{dense_roles, labels_per_task, micro_step, scales, site_shapes};
pub use trainer::{
    Ending, Listener, Outcome, StepRecord, Trainer, Validate, longest_step, refresh_json, restore,
};
