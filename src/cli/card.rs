//! What an exported model is given beside its weights: tokenizer, items, and how it is asked.

use super::session::Session;
use crate::data::{ItemIdentity, PromptSide};
use crate::error::Result;
use crate::export::{Card, Example};
use std::path::Path;

/// Writes into `dir` what whoever loads a whole model (`merged`) or an adapter of `run` needs to ask it.
pub fn write(session: &Session, run: &Path, merged: bool, dir: &Path) -> Result<()> {
    session.vocabulary.save(dir, &session.data.items)?;
    let (data, vocabulary, sources) = (&session.data, &session.vocabulary, session.prompts.sources());
    let prompts = data.tasks.iter().filter_map(|t| sources.get_key_value(t));
    let encoder = session.encoder();
    Card {
        name: run.file_name().and_then(|name| name.to_str()).unwrap_or("model"),
        merged,
        encoder_decoder: matches!(session.prompt_side, PromptSide::Encoder { .. }),
        prompts: prompts.map(|(task, prompt)| (task.as_str(), prompt.as_str())).collect(),
        chat: session.prompts.is_chat(),
        separator: encoder.separator(),
        history_limit: session.config.data.history_limit,
        end: vocabulary.eos().filter(|_| vocabulary.ends_targets()),
        items: data.items.len(),
        single: vocabulary.longest_target() == 1,
        rows: vocabulary.identity() != ItemIdentity::Text,
        example: example(session),
    }
    .write(dir)
}

/// A request that the first task's prompt can be filled with.
fn example(session: &Session) -> Example {
    let Some(task) = session.data.tasks.first() else { return Example::default() };
    let items = &session.data.items;
    let history: Vec<String> = (0..items.len().min(2) as u32).map(|i| items.id(i).to_string()).collect();
    let words = (0..items.len() as u32).find_map(|i| items.text(i)).unwrap_or("something to find");
    let query = session.prompts.missing(task, true, false).map(|_| words.to_string());
    Example { task: task.clone(), history, query }
}
