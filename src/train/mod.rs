//! One optimizer step, the loop around it, checkpoints, and the knowledge basis.

mod batches;
pub mod checkpoint;
mod departing;
mod knowledge;
mod plan;
mod record;
mod rehearsal;
mod schedule;
mod settings;
mod step;
mod trainer;
pub mod validation;

pub use batches::{Averaging, Batches, StepData};
pub use knowledge::{
    KnowledgePass, KnowledgeProgress, largest_knowledge, needs_basis, partial_path, planned_peak,
};
pub use plan::{MemoryPlan, PlannedRun};
pub use record::{Listener, Silent, StepRecord, refresh_json};
pub use rehearsal::Rehearsal;
pub use schedule::Schedule;
pub use settings::{CheckpointSettings, TrainSettings};
pub use step::{Leaves, gradients, gradients_in_leaves, micro_step, probe, rehearse};
pub use trainer::{Ending, Outcome, Spent, Standing, Trainer, Validate};
