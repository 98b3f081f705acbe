//! A race: methods x learning rates x seeds on one model and data, matched, and what can be said of the differences.
//!
//! Here is what a race is made of and what it finds; the command `race` runs the cells. `docs/race.md` has the rules.
//!
//! ```text
//! methods ─> grid of cells ─> (each cell a run) ─> outcomes ─> field ─> findings ─> verdict, tables, page
//! ```

mod curve;
mod field;
mod findings;
mod grid;
mod methods;
mod outcome;
mod page;
mod tables;
mod verdict;

pub use curve::{Beyond, Point, beyond, common_range, log_kl_at, log_ratio_or_bound, mean_log_ratio};
pub use field::{Entry, Field, Table};
pub use findings::{
    Equal, Estimate, Finding, Findings, Interference, Test, Together, Versus, choose, findings,
};
pub use grid::{Cell, Common, Grid, rows_by_task};
pub use methods::{Method, Methods, PLAIN};
pub use outcome::{Files, Kept, Made, Outcome, files};
pub use page::page;
pub use tables::text;
pub use verdict::{Race, verdict};
