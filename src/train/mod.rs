//! One optimizer step, the loop around it, checkpoints, the run directory, and the knowledge basis.

mod basis;
mod batches;
pub mod checkpoint;
mod plan;
mod record;
pub mod run;
mod schedule;
mod settings;
mod step;
mod trainer;
pub mod validation;

pub use basis::{knowledge_basis, largest_basis, needs_basis, rule_text};
pub use batches::{Averaging, Batches, StepData};
pub use plan::{MemoryPlan, PlannedRun};
pub use record::{Listener, StepRecord, refresh_json};
pub use schedule::Schedule;
pub use settings::{CheckpointSettings, TrainSettings};
pub use step::{gradients, micro_step, probe};
pub use trainer::{Ending, Outcome, Trainer, Validate};
