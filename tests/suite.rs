//! All tests, one module a room. `cargo test golden` runs those against reference values.

#[path = "suite/support.rs"]
mod support;

#[path = "suite/attention.rs"]
mod attention;
#[path = "suite/bad_input.rs"]
mod bad_input;
#[path = "suite/cli.rs"]
mod cli;
#[path = "suite/data.rs"]
mod data;
#[path = "suite/eval.rs"]
mod eval;
#[path = "suite/gems.rs"]
mod gems;
#[path = "suite/gpu.rs"]
mod gpu;
#[path = "suite/memory.rs"]
mod memory;
#[path = "suite/model.rs"]
mod model;
#[path = "suite/prepare.rs"]
mod prepare;
#[path = "suite/ranking.rs"]
mod ranking;
#[path = "suite/replay.rs"]
mod replay;
#[path = "suite/report.rs"]
mod report;
#[path = "suite/simt.rs"]
mod simt;
#[path = "suite/tables.rs"]
mod tables;
#[path = "suite/train.rs"]
mod train;
