//! `train --dry-run`: what would be done, and what it needs.

use super::session::Session;
use crate::error::{Error, Result};
use crate::model::{BatchShape, MemoryPlan};
use serde_json::json;
use std::io::Write;

/// Prints the plan of a session: parameters, steps, memory by part.
pub fn print(session: &mut Session, json: bool) -> Result<()> {
    let needs = session.needs_basis();
    let config = session.config.clone();
    let tuner_settings = config.tuner();
    let sites = crate::train::site_shapes(&session.model);
    let adapted = tuner_settings.adapted(&sites)?;
    let tasks = session.data.tasks.len();
    let encoder = session.encoder();
    let lengths: Vec<(usize, usize, usize)> = session
        .data
        .train
        .records
        .iter()
        .take(2000)
        .map(|r| {
            let e = encoder.encode(r, 0)?;
            Ok((e.tokens.len() - 1, e.encoder.as_ref().map_or(0, Vec::len), e.labels()))
        })
        .collect::<Result<_>>()?;
    let longest = lengths.iter().max().copied().unwrap_or_default();
    let batch = match config.train.batch_per_task.is_empty() {
        true => config.train.batch,
        false => config.train.batch_per_task.values().sum(),
    };
    let limit =
        if config.train.micro_batch_tokens == 0 { usize::MAX } else { config.train.micro_batch_tokens };
    let fits = batch.min((limit / (longest.0 + longest.1).max(1)).max(1));
    let shape =
        BatchShape { tokens: longest.0 * fits, encoder_tokens: longest.1 * fits, labels: longest.2 * fits };
    let rank: usize = sites.iter().map(|s| tuner_settings.ranks(s, tasks).iter().sum()).max().unwrap_or(0);
    let memory = MemoryPlan::predict(
        &session.model.architecture,
        shape,
        rank,
        config.train.activation_checkpointing,
        session.model.backend.compute_dtype(),
    );
    let parameters: usize = session.model.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let state: usize = sites
        .iter()
        .zip(&adapted)
        .filter(|(_, on)| **on)
        .map(|(s, _)| {
            let r: usize = tuner_settings.ranks(s, tasks).iter().sum();
            4 * (4 * s.outputs * r + r * s.inputs)
        })
        .sum();
    let mb = |bytes: usize| bytes as f64 / 1e6;
    let facts = json!({
        "device": session.model.backend.name(),
        "method": config.gems.method,
        "parameters": parameters,
        "adapted_layers": adapted.iter().filter(|a| **a).count(),
        "tasks": session.data.tasks,
        "steps": config.train.steps,
        "examples_a_step": batch,
        "training_records": session.data.train.records.len(),
        "learns_a_knowledge_basis": needs,
        "memory_mb": {
            "weights": mb(memory.weights), "activations": mb(memory.activations),
            "workspace": mb(memory.workspace), "method": mb(state), "total": mb(memory.total() + state),
        },
    });
    let text =
        if json { facts.to_string() } else { serde_json::to_string_pretty(&facts).unwrap_or_default() };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}
