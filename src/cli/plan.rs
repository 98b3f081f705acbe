//! `train --dry-run`: what would be done, and what it needs.

use super::needs;
use super::session::Session;
use crate::backend::Backend;
use crate::backend::cuda::{Cuda, DeviceSpec};
use crate::data::StepSize;
use crate::error::{Error, Kind, Result};
use crate::gems::Knowledge;
use crate::model::{Batch, Model};
use crate::train::{KnowledgePass, largest_knowledge, planned_peak};
use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The most memory that learning a knowledge basis holds at once, weights included, and that of the basis on the host.
fn learning(session: &Session) -> Result<(usize, usize)> {
    let model = &session.model;
    let counting: Arc<dyn Backend> = Cuda::open(DeviceSpec::counting(model.backend.info()))?;
    let outline = Model::outline(model.architecture.clone(), counting)?;
    let null = session.needed_basis();
    let chunks = session.chunks(&session.general.calibration, null.tokens)?;
    let never = AtomicBool::new(false);
    let pass = KnowledgePass { model: &outline, ..session.knowledge_pass(&null, &chunks, &never) };
    Ok((planned_peak(&pass)?, largest_knowledge(&outline, &null).bytes()))
}

/// An error of a device that is full, with the plan of the run and the settings that shrink it.
pub fn explain(error: Error, session: &Session) -> Error {
    if error.kind != Kind::Memory {
        return error;
    }
    match session.planned().needs(None) {
        Ok((_, plan)) => error.remedy(needs::smaller(&plan, &session.config)),
        Err(_) => error,
    }
}

/// Prints the plan of a session: parameters, steps, memory by part.
pub fn print(session: &Session, knowledge: Option<&Knowledge>, json: bool) -> Result<()> {
    let (config, data, model) = (&session.config, &session.data, &session.model);
    let (batches, memory) = session.planned().needs(knowledge)?;
    let adapted = config.tuner().adapted(&model.layout.sites)?;
    let parameters: usize = model.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let mb = |bytes: usize| bytes as f64 / 1e6;
    let learns = session.needs_basis() && knowledge.is_none();
    let (pass, held) = if learns { learning(session)? } else { (0, knowledge.map_or(0, Knowledge::bytes)) };
    let pulled = adapted.iter().zip(&model.layout.sites).filter(|(adapted, _)| **adapted);
    let pulled: usize = pulled.map(|(_, site)| site.outputs * site.inputs).sum();
    let pulled =
        if config.null_space.pull > 0.0 { pulled * model.backend.compute_dtype().bytes() } else { 0 };
    // What a GPU has shows when it is asked for it.
    let available = needs::available().filter(|_| !model.backend.info().launches_kernels());
    let facts = json!({
        "fits": available.map(|available| memory.total() <= available),
        "device": model.backend.info().name,
        "method": config.gems.method,
        "parameters": parameters,
        "adapted_layers": adapted.iter().filter(|a| **a).count(),
        "tasks": data.tasks,
        "steps": config.train.steps,
        "examples_a_step": StepSize::of(&config.train).examples(),
        "passes_of_the_largest_step": batches.len(),
        "tokens_of_the_largest_pass": batches.iter().map(Batch::rows).max(),
        "training_records": data.train.records.len(),
        "learns_a_knowledge_basis": learns,
        "memory_mb": {
            "weights": mb(memory.weights), "activations": mb(memory.activations),
            "workspace": mb(memory.workspace), "idle": mb(memory.idle), "method": mb(memory.method), "total": mb(memory.total()),
            "with_the_largest_possible_basis": learns, "learning_the_basis": mb(pass), "basis_on_the_host": mb(held),
            "base_weights_on_the_host": mb(pulled), "available": available.map(mb),
        },
    });
    let text =
        if json { facts.to_string() } else { serde_json::to_string_pretty(&facts).unwrap_or_default() };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}
