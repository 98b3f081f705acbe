//! The loop: schedule, accumulation, checkpoints, early stopping.

pub mod checkpoint;
pub mod run;
mod settings;

pub use settings::{CheckpointSettings, Schedule, TrainSettings};
