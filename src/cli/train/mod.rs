//! `gems-engine train`.

mod course;
mod resume;

use super::demo::{self, Source};
use super::measure::{measure_base, reference};
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::{Memory, Session, configuration};
use super::{plan, ranks, say};
use crate::config::{Config, Layer};
use crate::error::{Error, Result};
use crate::eval::KeptStates;
use crate::gems::{Knowledge, NullSide};
use crate::run::{RunDirectory, StepNorms, whole};
use crate::train::{Standing, validation};
use clap::Args;
use course::Course;
use std::path::{Path, PathBuf};

/// Tune a model for search and recommendation together.
///
/// Without --model and --data it tunes a tiny embedded model for an embedded world, in minutes on two cores.
///
/// Example: gems-engine train --model Qwen2.5-0.5B --data data --out runs/first
#[derive(Args)]
pub struct TrainArgs {
    /// The base model: a Hugging Face directory.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The data directory (see `prepare`).
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A knowledge basis made by `basis` [default: learned from the data's general text].
    #[arg(long, value_name = "FILE")]
    basis: Option<PathBuf>,
    /// The run directory [default: runs/NAME-OF-DATA].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Optimizer steps.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// gems, galore, lora, full or rows.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Settings to start from: published.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Scale every step to the update norm of the same step of another run.
    #[arg(long, value_name = "RUN")]
    match_step: Option<PathBuf>,
    /// Go on with the run in --out from its latest checkpoint; `auto`: if there is a run, else begin one.
    #[arg(long, value_name = "auto", num_args = 0..=1, default_missing_value = "always")]
    resume: Option<Resume>,
    /// Keep the base model's states on general text here, or take them from here: for runs of one race.
    #[arg(long, value_name = "DIR", hide = true)]
    base_states: Option<PathBuf>,
    /// Print the plan (parameters, steps, memory) and stop.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// When a run is gone on with.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Resume {
    /// It must be there.
    Always,
    /// If it is there: for whoever starts the same command again after a failure.
    Auto,
}

impl TrainArgs {
    fn flags(&self) -> Vec<Layer> {
        let mut flags = Vec::new();
        let mut put = |flag: &str, key: &str, value: toml::Value| flags.push(Layer::value(flag, key, value));
        let text = |p: &Path| toml::Value::from(p.display().to_string());
        if let Some(model) = &self.model {
            put("--model", "model.path", text(model));
        }
        if let Some(data) = &self.data {
            put("--data", "data.path", text(data));
        }
        if let Some(steps) = self.steps {
            put("--steps", "train.steps", toml::Value::from(steps as i64));
        }
        if let Some(method) = &self.method {
            put("--method", "gems.method", toml::Value::from(method.as_str()));
        }
        if let Some(run) = &self.match_step {
            put("--match-step", "train.match_step", text(run));
        }
        flags
    }

    /// The settings of a new run, where the model and the data come from, and the run directory.
    fn configuration(&self, out: Option<PathBuf>) -> Result<(Config, Source, PathBuf)> {
        let settings = SettingsArgs { config: self.settings.config.clone(), set: self.settings.set.clone() };
        let mut layers = settings.layers()?;
        layers.extend(self.flags());
        if let Some(preset) = &self.preset {
            layers.insert(0, Layer::preset(preset)?);
        }
        let all = |layers| configuration(&SettingsArgs::default(), &self.device, layers);
        let fresh = |name: &str| RunDirectory::fresh(Path::new("runs"), name);
        let named =
            |section: &str| layers.iter().any(|l| l.get(section).and_then(|s| s.get("path")).is_some());
        if named("model") || named("data") {
            let config = all(layers)?;
            let name = Path::new(&config.data.path).file_name();
            let name = name.map_or("run".into(), |n| n.to_string_lossy());
            let out = out.unwrap_or_else(|| fresh(&name));
            return Ok((config, Source::Given, out));
        }
        let out = out.unwrap_or_else(|| fresh("demo"));
        let demo = out.join(demo::INSIDE);
        let mut beneath = demo::settings(&demo)?;
        beneath.append(&mut layers);
        Ok((all(beneath)?, Source::Demo(demo), out))
    }
}

/// Runs the command.
pub fn run(args: &TrainArgs) -> Result<()> {
    super::catch_requests()?;
    let there = || args.out.as_ref().is_some_and(|out| out.join("config.toml").is_file());
    match args.resume {
        Some(Resume::Auto) if args.out.is_none() => {
            Err(Error::usage("--resume auto needs to know which run")
                .remedy("give the run's directory with --out"))
        }
        // Another rank may have begun it by now.
        Some(Resume::Auto) => match ranks::world().of_first(there())? {
            true => resume::run(args),
            false => start(args),
        },
        Some(Resume::Always) => resume::run(args),
        None => start(args),
    }
}

/// Begins a run.
fn start(args: &TrainArgs) -> Result<()> {
    let world = ranks::world();
    // Which name is free only one rank may find.
    let out = world.of_first(args.configuration(args.out.clone())?.2)?;
    let (config, source, out) = args.configuration(Some(out))?;
    let quiet = args.output.json || !world.is_first();
    if let Source::Demo(directory) = &source {
        if !quiet {
            say("no --model and no --data: running the embedded demo (see docs/demo.md)");
        }
        world.by_first(|| demo::unpack(directory))?;
    }
    let matched = Some(&config.train.match_step).filter(|run| !run.is_empty());
    let norms = matched.map(|run| StepNorms::of(&whole(Path::new(run)))).transpose()?;
    let mut session = match args.dry_run {
        true => Session::open(config, &args.device)?,
        false => Session::open_for(Memory::Training, config, &args.device)?,
    };
    ranks::settle_shards(&mut session.config)?;
    session.same_on_all_ranks()?;
    session.states = args.base_states.as_deref().map(KeptStates::new);
    let config = &session.config;
    if config.train.validate_every > 0 {
        validation::check_metric(&config.train.best_metric, &session.data.tasks, &config.evaluate)?;
    }
    if args.dry_run {
        let knowledge = args.basis.as_ref().map(|path| session.basis_for_run(path)).transpose()?;
        return if world.is_first() { plan::print(&session, knowledge.as_ref(), quiet) } else { Ok(()) };
    }
    let steps = config.train.steps;
    let directory = ranks::directory(&out, false)?;
    let mut kept = session.kept(&out, norms);
    world.by_first(|| kept.begin())?;
    let journal = ranks::journal(&out, "train", quiet)?;
    journal.keep(&format!("{} on {}", session.base.display(), session.model.backend.info().name));
    session.config.notes().iter().for_each(|note| journal.say(note));
    for (reason, count) in &session.data.skipped {
        journal.say(&format!("{count} rows left out: {reason}"));
    }
    kept.norms.iter().filter_map(|norms| norms.ends_before(steps)).for_each(|note| journal.say(&note));
    session.text_warnings()?.iter().for_each(|warning| journal.say(warning));
    let mut phases = std::mem::take(&mut session.phases);
    let learn = || knowledge(&session, &directory, args.basis.as_deref(), quiet);
    let knowledge = phases.time("learning the knowledge basis", learn)?;
    if let Some(knowledge) = &knowledge {
        let protected = session.protected(knowledge)?;
        journal.keep(&format!("what is known of the layers, and protected of it:\n{}", protected.table()));
        let protects = matches!(session.config.null_space.side, NullSide::Input | NullSide::Output);
        protected.warnings(protects).iter().for_each(|w| journal.say(&format!("warning: {w}")));
    }
    let reference = phases.time("base on general text", || reference(&session))?;
    // Before anything of the model changes.
    let rehearsal = phases.time("text to rehearse", || session.rehearsal())?;
    let before = match session.config.train.evaluate_before {
        true => {
            let measure = || measure_base(&session, reference.as_ref(), quiet);
            Some(phases.time("measuring before", measure)?)
        }
        false => None,
    };
    world.by_first(|| before.iter().try_for_each(|value| course::keep_before(&out, value)))?;
    let tuner = session.tuner(knowledge.as_ref()).map_err(|error| plan::explain(error, &session))?;
    let at = Standing::default();
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

/// The basis given, or one that is learned now; the run keeps it.
fn knowledge(
    session: &Session,
    run: &RunDirectory,
    given: Option<&Path>,
    quiet: bool,
) -> Result<Option<Knowledge>> {
    if !session.needs_basis() {
        return Ok(None);
    }
    let kept = run.join("basis.safetensors");
    let Some(path) = given else {
        return session.learn_basis(&kept, &session.needed_basis(), quiet).map(Some);
    };
    let basis = session.basis_for_run(path)?;
    // What does not go with the settings is told before it is kept.
    session.protection(&basis).map_err(|e| e.at(path.display()))?;
    ranks::world().by_first(|| basis.save(&kept))?;
    Ok(Some(basis))
}
