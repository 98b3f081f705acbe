//! Raw public data sets into the engine's data directory.
