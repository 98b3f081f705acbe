//! All tests, one module a room. `cargo test golden` runs those against reference values.

#[path = "suite/support.rs"]
mod support;

#[path = "suite/bad_input/mod.rs"]
mod bad_input;
#[path = "suite/best_first.rs"]
mod best_first;
#[path = "suite/blocks.rs"]
mod blocks;
#[path = "suite/checkpoints.rs"]
mod checkpoints;
#[path = "suite/cli.rs"]
mod cli;
#[path = "suite/codes.rs"]
mod codes;
#[path = "suite/data/mod.rs"]
mod data;
#[path = "suite/distributed/mod.rs"]
mod distributed;
#[path = "suite/documents.rs"]
mod documents;
#[path = "suite/drivers.rs"]
mod drivers;
#[path = "suite/eval.rs"]
mod eval;
#[path = "suite/gems/mod.rs"]
mod gems;
#[path = "suite/gpu/mod.rs"]
mod gpu;
#[path = "suite/house.rs"]
mod house;
#[path = "suite/memory.rs"]
mod memory;
#[path = "suite/model/mod.rs"]
mod model;
#[path = "suite/ops/mod.rs"]
mod ops;
#[path = "suite/prepare/mod.rs"]
mod prepare;
#[path = "suite/race/mod.rs"]
mod race;
#[path = "suite/ranking.rs"]
mod ranking;
#[path = "suite/replay.rs"]
mod replay;
#[path = "suite/report/mod.rs"]
mod report;
#[path = "suite/run/mod.rs"]
mod run;
#[path = "suite/serve.rs"]
mod serve;
#[path = "suite/settings.rs"]
mod settings;
#[path = "suite/simt.rs"]
mod simt;
#[path = "suite/tables.rs"]
mod tables;
#[path = "suite/terminal.rs"]
mod terminal;
#[path = "suite/ties.rs"]
mod ties;
#[path = "suite/tokens.rs"]
mod tokens;
#[path = "suite/train.rs"]
mod train;
