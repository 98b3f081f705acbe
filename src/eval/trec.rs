//! TREC run and qrels files, for other evaluators.

use super::rank::Rankings;
use crate::data::{Dataset, Split};
use crate::error::Result;
use crate::files::write_atomically;
use std::fmt::Write;
use std::path::Path;

/// Writes `NAME.run` and `NAME.qrels` into `dir`: query ids are `task-row`.
///
/// # Errors
/// The file system.
pub fn write(dir: &Path, name: &str, data: &Dataset, split: &Split, rankings: &Rankings) -> Result<()> {
    let (mut run, mut qrels) = (String::new(), String::new());
    // Whitespace separates columns; an id that holds some would shift them.
    let id = |item: u32| data.items.id(item).split_whitespace().collect::<Vec<_>>().join("_");
    for ranked in &rankings.requests {
        let query = format!("{}-{}", data.tasks[ranked.task as usize].replace(' ', "_"), ranked.record + 1);
        for (place, (item, score)) in ranked.top.iter().enumerate() {
            let _ = writeln!(run, "{query} Q0 {} {} {score} gems-engine", id(*item), place + 1);
        }
        for item in split.records[ranked.record].target.iter() {
            let _ = writeln!(qrels, "{query} 0 {} 1", id(*item));
        }
    }
    write_atomically(&dir.join(format!("{name}.run")), run.as_bytes())?;
    write_atomically(&dir.join(format!("{name}.qrels")), qrels.as_bytes())
}
