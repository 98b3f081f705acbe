//! The loop: schedule, accumulation, checkpoints, early stopping.
