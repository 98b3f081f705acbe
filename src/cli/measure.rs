//! Ranks the test records and measures general knowledge: for `train` and `evaluate`.

use super::session::Session;
use crate::data::Split;
use crate::error::Result;
use crate::eval::{EvaluateSettings, Metrics, Rankings, Reference, rank_split};
use crate::report::Progress;
use serde_json::{Map, Value, json};

/// The base model's predictions on held-out general text, or nothing where there is no such text.
pub fn reference(session: &Session) -> Result<Option<Reference>> {
    let chunks = session.chunks(&session.general.held_out, session.config.evaluate.general_tokens)?;
    match chunks.is_empty() {
        true => Ok(None),
        false => Reference::capture(&session.model, chunks, session.old_vocabulary).map(Some),
    }
}

/// Ranked test splits, `test` first.
pub fn rankings<'a>(
    session: &'a Session,
    settings: &EvaluateSettings,
    quiet: bool,
) -> Result<Vec<(&'a Split, Rankings)>> {
    let encoder = session.encoder();
    session
        .data
        .tests()
        .map(|split| {
            let mut progress =
                Progress::new(&format!("ranking {}", split.name), split.records.len() as u64, quiet);
            let mut tell = |done: usize, _: usize| progress.tick(done as u64, String::new);
            let ranked = rank_split(&session.model, &encoder, &session.data, split, settings, &mut tell)?;
            progress.finish();
            Ok((split, ranked))
        })
        .collect()
}

/// `{task: {metric: value}, "SPLIT.task": .., "general": ..}`.
pub fn summary(
    session: &Session,
    settings: &EvaluateSettings,
    ranked: &[(&Split, Rankings)],
    reference: Option<&Reference>,
) -> Result<Value> {
    let mut all = Map::new();
    for (split, rankings) in ranked {
        let metrics: Metrics = rankings.metrics(&session.data.tasks, settings);
        for (task, values) in metrics {
            let key = if split.name == "test" { task } else { format!("{}.{task}", split.name) };
            all.insert(key, json!(values));
        }
    }
    if let Some(reference) = reference {
        all.insert("general".into(), json!(reference.measure(&session.model)?));
    }
    Ok(Value::Object(all))
}

/// Both at once.
pub fn measure(session: &Session, reference: Option<&Reference>, quiet: bool) -> Result<Value> {
    let settings = &session.config.evaluate;
    let ranked = rankings(session, settings, quiet)?;
    summary(session, settings, &ranked, reference)
}
