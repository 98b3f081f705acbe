//! The run's configuration: one typed structure, from file and flags.
