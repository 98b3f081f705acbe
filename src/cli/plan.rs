//! `train --dry-run`: what would be done, and what it needs.

use super::needs::{self, PlannedKnowledge};
use super::session::Session;
use crate::config::Config;
use crate::data::StepSize;
use crate::error::{Error, Kind, Result};
use crate::gems::Knowledge;
use crate::model::Batch;
use serde_json::{Value, json};
use std::io::Write;

/// The most memory that learning a knowledge basis holds at once, weights included, and that of the basis on the host.
fn learning(session: &Session) -> Result<(usize, usize)> {
    let (model, settings) = (&session.model, &session.needed_basis());
    let chunks = &session.chunks(&session.general.calibration, settings.tokens)?;
    let (architecture, device) = (&model.architecture, model.backend.info());
    let vocabulary = session.old_vocabulary;
    PlannedKnowledge { architecture, device, settings, chunks, vocabulary }.needs()
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
    // Of a weight in codes nothing is kept: all that changes is beside it.
    let pulled = adapted.iter().zip(&model.linears).filter(|(adapted, _)| **adapted);
    let pulled = pulled.filter(|(_, layer)| layer.weight.quantised().is_none());
    let pulled: usize = pulled.map(|(_, layer)| layer.weight.bytes()).sum();
    let pulled = if config.null_space.pull > 0.0 { pulled } else { 0 };
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
    let text = if json { facts.to_string() } else { described(&facts, config) };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
}

/// The plan in lines for people.
fn described(facts: &Value, config: &Config) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let memory = |part: &str| number(&facts["memory_mb"][part]);
    let mb = |part: &str| format!("{part} {:.1}", memory(part));
    let examples = number(&facts["steps"]) * number(&facts["examples_a_step"]);
    let epochs = examples / number(&facts["training_records"]).max(1.0);
    let parts = ["weights", "activations", "workspace", "method", "idle"].map(mb).join(", ");
    let room = facts["memory_mb"]["available"].as_f64().map_or(String::new(), |available| {
        let fits = if facts["fits"] == true { "it fits" } else { "IT DOES NOT FIT" };
        format!("; {available:.0} MB available: {fits}")
    });
    let model = number(&facts["parameters"]) * 4.0 / 1e6;
    let saved = memory("weights") + memory("method");
    let kept = config.checkpoint.keep + 1;
    let mut lines = vec![
        (
            "run",
            format!(
                "{} on {}, {} layers adapted of a model of {:.1} M parameters",
                facts["method"].as_str().unwrap_or_default(),
                facts["device"].as_str().unwrap_or_default(),
                facts["adapted_layers"],
                number(&facts["parameters"]) / 1e6,
            ),
        ),
        (
            "steps",
            format!(
                "{} of {} examples each; {} training records are seen {epochs:.1} times",
                facts["steps"], facts["examples_a_step"], facts["training_records"],
            ),
        ),
        (
            "largest step",
            format!(
                "{} tokens in a pass, {} passes",
                facts["tokens_of_the_largest_pass"], facts["passes_of_the_largest_step"],
            ),
        ),
        ("memory, MB", format!("{parts}; {:.1} in all{room}", memory("total"))),
    ];
    if facts["learns_a_knowledge_basis"] == true {
        lines.push((
            "",
            format!("learning the knowledge basis before, at most {:.1}", memory("learning_the_basis")),
        ));
    }
    lines.push((
        "disk, MB",
        format!(
            "at most {:.0} for {kept} checkpoints, {} for model/",
            saved * kept as f64,
            if config.train.export { format!("{model:.0}") } else { "nothing".into() },
        ),
    ));
    lines.push(("time", "not known before a step is done: `gems-engine profile` does a few".into()));
    lines.iter().map(|(name, text)| format!("{name:<14}{text}")).collect::<Vec<_>>().join("\n")
}
