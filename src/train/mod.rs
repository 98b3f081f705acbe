//! The loop: schedule, accumulation, checkpoints, early stopping.

pub mod checkpoint;
pub mod run;
mod settings;
mod step;

pub use settings::{CheckpointSettings, Schedule, TrainSettings};
pub use step::{dense_roles, labels_per_task, micro_step, scales, site_shapes};
