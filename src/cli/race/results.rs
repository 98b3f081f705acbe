//! From results to findings, page and tables.

use super::plan::Plan;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::model::{Architecture, Layout};
use crate::race::{Cell, Field, Kept, Race, findings, page, text, verdict};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Judges what has a result.
pub(super) fn judge(plan: &Plan, kept: &BTreeMap<usize, Kept>, failed: Vec<(Cell, String)>) -> Race {
    let mut field = Field::new(&plan.grid, plan.judged.clone());
    let mut missing = failed;
    for (place, (cell, _)) in plan.cells.iter().enumerate().skip(1) {
        let Some(found) = kept.get(&place) else {
            if !missing.iter().any(|(c, _)| c == cell) {
                missing.push((cell.clone(), "not run yet".into()));
            }
            continue;
        };
        let seed = field.seeds.iter().position(|s| *s == cell.seed);
        let is =
            |e: &&mut crate::race::Entry| e.method == cell.method && e.alone == cell.alone && e.lr == cell.lr;
        if let (Some(seed), Some(entry)) = (seed, field.entries.iter_mut().find(is)) {
            entry.runs[seed] = Some(found.outcome.clone());
        }
    }
    Race {
        title: title(plan),
        facts: facts(plan),
        findings: findings(&field, &plan.grid.methods, plan.within),
        base: kept.get(&0).map(|k| k.outcome.clone()),
        grid: plan.grid.clone(),
        tasks: plan.common.tasks.clone(),
        layers: layers(plan),
        metric: plan.metric.clone(),
        within: plan.within,
        notes: plan.notes.clone(),
        missing,
        field,
    }
}

fn title(plan: &Plan) -> String {
    let last = |path: &str| {
        let name = Path::new(path).file_name();
        name.map_or(path.to_string(), |n| n.to_string_lossy().into_owned())
    };
    format!("{} on {}", last(&plan.config.model.path), last(&plan.config.data.path))
}

/// The adapted layers of the model; nothing where it cannot be read.
fn layers(plan: &Plan) -> Vec<String> {
    let Ok(architecture) = Architecture::read(Path::new(&plan.config.model.path)) else { return Vec::new() };
    let sites = Layout::new(&architecture).sites;
    let adapted = plan.config.tuner().adapted(&sites).unwrap_or_default();
    sites.into_iter().zip(adapted).filter(|(_, adapted)| *adapted).map(|(site, _)| site.name).collect()
}

fn facts(plan: &Plan) -> Vec<(String, String)> {
    let rows: Vec<String> = plan.common.batch.iter().map(|(task, n)| format!("{n} {task}")).collect();
    let (least, most) = (plan.grid.steps.iter().min(), plan.grid.steps.iter().max());
    let steps = match (least, most) {
        (Some(a), Some(b)) if a == b => a.to_string(),
        (Some(a), Some(b)) => format!("{a} to {b}"),
        _ => String::new(),
    };
    let seeds: Vec<String> = plan.grid.seeds.iter().map(u64::to_string).collect();
    let fact = |name: &str, value: String| (name.to_string(), value);
    vec![
        fact("model", plan.config.model.path.clone()),
        fact("data", plan.config.data.path.clone()),
        fact("steps of a cell", steps),
        fact("rows of a step", rows.join(", ")),
        fact("seeds", seeds.join(", ")),
        fact("cells", (plan.cells.len() - 1).to_string()),
    ]
}

/// Everything for machines.
fn as_json(race: &Race, plan: &Plan, kept: &BTreeMap<usize, Kept>) -> Value {
    let cell = |kept: &Kept| {
        let o = &kept.outcome;
        json!({"name": kept.cell.name(&plan.common.tasks), "cell": kept.cell, "valid": o.valid, "measured": o.measured,
            "kl": o.kl(), "training": o.training})
    };
    let missing = race.missing.iter().map(|(c, why)| json!({"cell": c.name(&plan.common.tasks), "why": why}));
    json!({
        "race": plan.out.display().to_string(), "metric": race.metric, "verdict": verdict(race),
        "findings": race.findings, "cells": kept.values().map(cell).collect::<Vec<_>>(),
        "missing": missing.collect::<Vec<_>>(), "notes": race.notes, "files": plan.files,
    })
}

/// Writes `race.html` and `race.json`.
pub(super) fn write(race: &Race, plan: &Plan, kept: &BTreeMap<usize, Kept>) -> Result<()> {
    page(race).write(&plan.out.join("race.html"))?;
    write_atomically(&plan.out.join("race.json"), as_json(race, plan, kept).to_string().as_bytes())
}

/// Prints the tables and what to take.
pub(super) fn print(race: &Race, plan: &Plan, kept: &BTreeMap<usize, Kept>, json: bool) -> Result<()> {
    let text = match json {
        true => as_json(race, plan, kept).to_string() + "\n",
        false => format!("{}{}\n", text(race), plan.out.join("race.html").display()),
    };
    let mut out = std::io::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| Error::io("write", "standard output", e))
}
