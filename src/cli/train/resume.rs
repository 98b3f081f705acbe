//! `train --resume`: nothing of a run is written before everything is known to fit.

use super::TrainArgs;
use super::course::{Course, keep_before, legend};
use crate::cli::demo::Source;
use crate::cli::measure::{measure_base, reference};
use crate::cli::session::{Memory, Session, device_layer};
use crate::cli::{plan, ranks, say, summary};
use crate::config::{Config, Layer};
use crate::error::{Error, Kind, Result};
use crate::eval::KeptStates;
use crate::gems::{Knowledge, Side};
use crate::run::{Change, End, Purpose, Reads, Run, RunDirectory, end};
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::{Ending, Rehearsal, Standing};
use serde_json::{Value, json};
use std::path::Path;

/// Goes on with a run.
pub(super) fn run(args: &TrainArgs) -> Result<()> {
    let out = args.out.clone().ok_or_else(|| {
        Error::usage("--resume needs to know which run").remedy("give the run's directory with --out")
    })?;
    let world = ranks::world();
    let (directory, quiet) = (ranks::directory(&out, true)?, args.output.json || !world.is_first());
    let mut kept = Run::open(&out)?;
    let (config, changes) = kept.settings(layers(args)?, Purpose::Resume)?;
    let source = Source::of_run(&kept.path, &config);
    let ended = end(&kept.path)?;
    if let Some(result) = nothing_left(&kept.path, ended, &config, &changes) {
        return match world.is_first() {
            true => summary::print(&result, quiet, legend(&source)),
            false => Ok(()),
        };
    }
    let memory = if args.dry_run { Memory::Any } else { Memory::Training };
    let mut session = Session::of_run(&kept, config, (Reads::Training, memory), &args.device)?;
    // A run that says nothing of leaves has one.
    session.config.train.shards = session.config.train.shards.max(1);
    ranks::settle_shards(&mut session.config)?;
    session.same_on_all_ranks()?;
    session.states = args.base_states.as_deref().map(KeptStates::new);
    let mut notes = std::mem::take(&mut session.notes);
    let found = newest(&out, &mut notes)?;
    let knowledge = knowledge(&session, &directory, args, found.as_ref())?;
    if args.dry_run {
        return if world.is_first() { plan::print(&session, knowledge.as_ref(), quiet) } else { Ok(()) };
    }
    let reference = reference(&session)?;
    let stored = std::fs::read_to_string(out.join("before.json")).ok();
    let stored = stored.and_then(|text| serde_json::from_str(&text).ok()).filter(|_| session.same_tests);
    let before: Option<Value> = match (stored, session.config.train.evaluate_before) {
        (None, true) => Some(measure_base(&session, reference.as_ref(), quiet)?),
        (stored, _) => stored,
    };
    // Before anything of the model changes.
    let rehearsal = session.rehearsal().map_err(|error| match error.kind {
        Kind::Data => Error::data("the general text that this run rehearses is not there any more")
            .at(&session.config.data.path)
            .remedy("put it back as it was when the run began"),
        _ => error,
    })?;
    let mut tuner = session.tuner(knowledge.as_ref())?;
    let at = found.as_ref().map(Standing::of).unwrap_or_default();
    if let Some(found) = found {
        check_rehearsal(&found, rehearsal.as_ref())?;
        found.restore(&mut session.model, &mut tuner, &session.data.tasks)?;
    }
    check_steps(&out, &at, &session.config)?;
    if ended.is_some() && at.is_over(&session.config.train) {
        say(&format!("nothing is left to do: with these settings too, this run ends at step {}", at.step));
        return Ok(());
    }
    notes.extend(stretched(&kept.config, &session.config, at.step));
    notes.extend(kept.norms.iter().filter_map(|norms| norms.ends_before(session.config.train.steps)));
    // It fits: from here on the run is written to.
    world.by_first(|| {
        kept.resume(&session.config, &changes, at.step, &notes)?;
        before.iter().try_for_each(|value| keep_before(&out, value))
    })?;
    let journal = ranks::journal(&out, "train --resume", quiet)?;
    journal.keep(&format!("{} on {}", session.base.display(), session.model.backend.info().name));
    journal.say(&format!("going on after step {}", at.step));
    // For people, whoever reads the result.
    for note in changes.iter().map(|change| format!("changed: {change}")).chain(notes) {
        say(&note);
        journal.keep(&note);
    }
    let phases = std::mem::take(&mut session.phases);
    Course {
        session,
        kept,
        directory,
        journal,
        knowledge,
        reference,
        before,
        rehearsal,
        source,
        phases,
        quiet,
    }
    .go(tuner, at)
}

/// The settings given with the command.
fn layers(args: &TrainArgs) -> Result<Vec<Layer>> {
    if args.preset.is_some() && args.resume != Some(super::Resume::Auto) {
        return Err(Error::usage("a resumed run keeps its settings; it takes no preset")
            .at("--preset")
            .remedy("leave it out"));
    }
    let mut layers = args.settings.layers()?;
    layers.extend(args.flags());
    layers.extend(device_layer(&args.device));
    Ok(layers)
}

/// The result of a run that has ended and would not go on under `config`; says so.
fn nothing_left(run: &Path, ended: Option<End>, config: &Config, changes: &[Change]) -> Option<Value> {
    let (end, newest) = (ended?, checkpoint::list(&run.join("checkpoints")).ok()?.last()?.0);
    let result = serde_json::from_str(&std::fs::read_to_string(run.join("result.json")).ok()?).ok()?;
    let (step, steps) = (end.step, config.train.steps);
    let patience = changes.iter().any(|c| c.key == "train.patience");
    let (why, how) = match end.ending {
        Ending::Finished if steps == step => (format!("all {step} steps of this run are done"), "--steps N"),
        Ending::Early if !patience => (
            format!(
                "this run stopped early, after step {step} of {steps}: validation did not improve any more"
            ),
            "--set train.patience=N (0: never stop early)",
        ),
        _ => return None,
    };
    if newest != step {
        return None;
    }
    say(&format!("{why}. Nothing is left to do, and nothing was changed; to train on, give {how}"));
    if !changes.is_empty() {
        let given: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
        say(&format!("not taken over: {}", given.join(", ")));
    }
    Some(result)
}

/// The newest whole checkpoint; none where none was written yet.
fn newest(run: &Path, notes: &mut Vec<String>) -> Result<Option<Checkpoint>> {
    let root = run.join("checkpoints");
    if checkpoint::list(&root)?.is_empty() {
        notes.push("no checkpoint was written yet: the run begins anew".into());
        return Ok(None);
    }
    checkpoint::load_latest(&root, |e| notes.push(format!("checkpoint passed over: {e}"))).map(Some)
}

/// The run's own knowledge basis; learned (or taken) only where nothing was trained with one yet.
fn knowledge(
    session: &Session,
    run: &RunDirectory,
    args: &TrainArgs,
    found: Option<&Checkpoint>,
) -> Result<Option<Knowledge>> {
    if let (Some(path), Some(_)) = (&args.basis, found) {
        return Err(Error::usage("a resumed run keeps its own knowledge basis")
            .at(path.display())
            .remedy("leave --basis out"));
    }
    match (session.stored_basis(&run.path)?, found) {
        (Some(basis), _) => Ok(Some(basis)),
        (None, Some(_)) if session.needs_basis() => {
            Err(Error::usage("the knowledge basis of this run is gone")
                .at(run.join("basis.safetensors").display())
                .remedy("put it back, or train again in another directory"))
        }
        (None, Some(_)) => Ok(None),
        (None, None) => super::knowledge(session, run, args.basis.as_deref(), args.output.json),
    }
}

/// The text that is rehearsed must be that of the run.
fn check_rehearsal(found: &Checkpoint, now: Option<&Rehearsal>) -> Result<()> {
    match found.state["rehearsal"] == json!(now.map(Rehearsal::fingerprint)) {
        true => Ok(()),
        false => Err(Error::usage("this run rehearsed other general text, or with other settings")
            .at("[rehearsal]")
            .remedy("resume with the general text and the settings that it was started with")),
    }
}

fn check_steps(run: &Path, at: &Standing, config: &Config) -> Result<()> {
    let steps = config.train.steps;
    match at.step > steps {
        true => Err(Error::usage(format!("this run has done {} steps already, more than {steps}", at.step))
            .at(run.display())
            .remedy(format!("give --steps {} or more; older checkpoints are in checkpoints/", at.step))),
        false => Ok(()),
    }
}

/// What another number of steps does to the learning rate.
fn stretched(old: &Config, new: &Config, step: u64) -> Option<String> {
    let of = |c: &Config, index: u64| c.train.lr * c.train.rate(index, c.gems.side == Side::Published);
    let (before, would, will) = (of(old, step.saturating_sub(1)), of(old, step), of(new, step));
    let moved = step > 0 && (would - will).abs() > 1e-9 * would.abs().max(will.abs());
    moved.then(|| {
        format!(
            "the schedule now ends at step {} instead of {}: the learning rate, {before:.3e} in step {step}, is \
             {will:.3e} in the next one, where it would have been {would:.3e}",
            new.train.steps, old.train.steps
        )
    })
}
