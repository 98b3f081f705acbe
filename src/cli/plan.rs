//! `train --dry-run`: what would be done, and what it needs.

use super::session::Session;
use crate::error::{Error, Kind, Result};
use crate::model::{BatchShape, MemoryPlan};
use serde_json::json;
use std::io::Write;

/// What a run needs, in bytes.
pub struct Needs {
    plan: MemoryPlan,
    /// The method's own: bases, coordinates, moments.
    method: usize,
}

impl Needs {
    fn total(&self) -> usize {
        self.plan.total() + self.method
    }
}

/// Examples of a step.
fn batch(session: &Session) -> usize {
    let t = &session.config.train;
    match t.batch_per_task.is_empty() {
        true => t.batch,
        false => t.batch_per_task.values().sum(),
    }
}

/// Predicts the largest step of a session.
pub fn needs(session: &Session) -> Result<Needs> {
    let config = &session.config;
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
    let limit =
        if config.train.micro_batch_tokens == 0 { usize::MAX } else { config.train.micro_batch_tokens };
    let fits = batch(session).min((limit / (longest.0 + longest.1).max(1)).max(1));
    let shape =
        BatchShape { tokens: longest.0 * fits, encoder_tokens: longest.1 * fits, labels: longest.2 * fits };
    let rank: usize = sites.iter().map(|s| tuner_settings.ranks(s, tasks).iter().sum()).max().unwrap_or(0);
    let plan = MemoryPlan::predict(
        &session.model.architecture,
        shape,
        rank,
        config.train.activation_checkpointing,
        session.model.backend.compute_dtype(),
    );
    let method = sites
        .iter()
        .zip(&adapted)
        .filter(|(_, on)| **on)
        .map(|(s, _)| {
            let r: usize = tuner_settings.ranks(s, tasks).iter().sum();
            4 * (4 * s.outputs * r + r * s.inputs)
        })
        .sum();
    Ok(Needs { plan, method })
}

/// An error of a device that is full, with the plan of the run and the settings that shrink it.
pub fn explain(error: Error, session: &Session) -> Error {
    let (Kind::Memory, Ok(needs)) = (error.kind, needs(session)) else { return error };
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let t = &session.config.train;
    let checkpointing =
        if t.activation_checkpointing { "" } else { ", train.activation_checkpointing = true" };
    error.remedy(format!(
        "the run is planned with weights {}, activations {}, workspace {}, method {}: {} in all; make it smaller \
         with train.micro_batch_tokens (now {}){checkpointing}, train.batch (now {}), gems.rank (now {}), or use \
         another device",
        mib(needs.plan.weights),
        mib(needs.plan.activations),
        mib(needs.plan.workspace),
        mib(needs.method),
        mib(needs.total()),
        t.micro_batch_tokens,
        batch(session),
        session.config.gems.rank,
    ))
}

/// Prints the plan of a session: parameters, steps, memory by part.
pub fn print(session: &Session, json: bool) -> Result<()> {
    let needs = needs(session)?;
    let config = &session.config;
    let sites = crate::train::site_shapes(&session.model);
    let adapted = config.tuner().adapted(&sites)?;
    let parameters: usize = session.model.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let mb = |bytes: usize| bytes as f64 / 1e6;
    let facts = json!({
        "device": session.model.backend.name(),
        "method": config.gems.method,
        "parameters": parameters,
        "adapted_layers": adapted.iter().filter(|a| **a).count(),
        "tasks": session.data.tasks,
        "steps": config.train.steps,
        "examples_a_step": batch(session),
        "training_records": session.data.train.records.len(),
        "learns_a_knowledge_basis": session.needs_basis(),
        "memory_mb": {
            "weights": mb(needs.plan.weights), "activations": mb(needs.plan.activations),
            "workspace": mb(needs.plan.workspace), "method": mb(needs.method), "total": mb(needs.total()),
        },
    });
    let text =
        if json { facts.to_string() } else { serde_json::to_string_pretty(&facts).unwrap_or_default() };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}
