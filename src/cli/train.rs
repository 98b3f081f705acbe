//! `gems-engine train`.

use super::console::Console;
use super::demo::{self, Source};
use super::measure::{measure, reference};
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::{Session, configuration, run_configuration};
use super::{plan, summary};
use crate::config::{Config, Layer};
use crate::error::{Error, Kind, Result};
use crate::eval::EvaluateSettings;
use crate::export::write_merged;
use crate::gems::{KnowledgeBasis, Side};
use crate::model::{Model, StoredType};
use crate::report::{Journal, Progress, read};
use crate::train::run::RunDirectory;
use crate::train::{Averaging, Batches, Ending, Trainer, checkpoint, validation};
use clap::Args;
use serde_json::{Map, Value, json};
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
    /// Go on with the run in --out from its latest checkpoint.
    #[arg(long)]
    resume: bool,
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
        flags
    }

    /// The settings, where the model and the data come from, and the run directory.
    fn configuration(&self) -> Result<(Config, Source, PathBuf)> {
        if self.resume {
            let out = self.out.clone().ok_or_else(|| {
                Error::usage("--resume needs to know which run").remedy("give the run's directory with --out")
            })?;
            // Only what a resumed run may change without becoming another run.
            let mut config = run_configuration(&out, &self.settings, &self.device)?;
            config.train.steps = self.steps.unwrap_or(config.train.steps);
            let source = Source::of_run(&out, &config);
            return Ok((config, source, out));
        }
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
            let out = self.out.clone().unwrap_or_else(|| fresh(&name));
            return Ok((config, Source::Given, out));
        }
        let out = self.out.clone().unwrap_or_else(|| fresh("demo"));
        let demo = out.join(demo::INSIDE);
        let mut beneath = demo::settings(&demo)?;
        beneath.append(&mut layers);
        Ok((all(beneath)?, Source::Demo(demo), out))
    }
}

/// Runs the command.
pub fn run(args: &TrainArgs) -> Result<()> {
    let (config, source, out) = args.configuration()?;
    let quiet = args.output.json;
    if let (Source::Demo(directory), false) = (&source, args.resume) {
        if !quiet {
            eprintln!("no --model and no --data: running the embedded demo (see docs/demo.md)");
        }
        demo::unpack(directory)?;
    }
    let mut session = Session::open(config, &args.device)?;
    if session.config.train.validate_every > 0 {
        let (chosen, tasks) = (&session.config.train.best_metric, &session.data.tasks);
        validation::check_metric(chosen, tasks, &session.config.evaluate)?;
    }
    if args.dry_run {
        let knowledge = args.basis.as_ref().map(|path| given_basis(path, &session)).transpose()?;
        return plan::print(&session, knowledge.as_ref(), args.output.json);
    }
    let run = RunDirectory::open(&out, args.resume)?;
    crate::files::write_atomically(&run.join("config.toml"), session.config.to_toml().as_bytes())?;
    let command = if args.resume { "train --resume" } else { "train" };
    let journal = Journal::open(&run.join("log.txt"), command, quiet)?;
    journal.keep(&format!("{} on {}", session.base.display(), session.model.backend.info().name));
    for (reason, count) in &session.data.skipped {
        journal.say(&format!("{count} rows left out: {reason}"));
    }
    let knowledge = knowledge(&session, &run, args, quiet)?;
    let reference = reference(&session)?;
    let stored = run.join("before.json");
    let before = match std::fs::read_to_string(&stored).ok().and_then(|t| serde_json::from_str(&t).ok()) {
        Some(value) if args.resume => Some(value),
        _ if session.config.train.evaluate_before => {
            let value = measure(&session, reference.as_ref(), quiet)?;
            crate::files::write_atomically(&stored, value.to_string().as_bytes())?;
            Some(value)
        }
        _ => None,
    };
    let outcome = tune(&mut session, &run, knowledge.as_ref(), args, &journal)
        .map_err(|error| plan::explain(error, &session))?;
    journal.keep(match outcome.ending {
        Ending::Finished => "all steps are done",
        Ending::Early => "stopped early: validation did not improve any more",
        Ending::Interrupted => "interrupted",
    });
    if outcome.ending == Ending::Interrupted {
        return Err(Error::new(
            Kind::Interrupted,
            format!("stopped after step {}; everything is saved", outcome.step),
        )
        .remedy(format!("go on with --resume --out {}", run.path.display())));
    }
    if let Some((step, _)) = outcome.best.filter(|(step, _)| *step != outcome.step) {
        let found = checkpoint::load(&checkpoint::directory(&run.join("checkpoints"), step))?;
        let mut tuner = session.tuner(knowledge.as_ref())?;
        found.restore(&mut session.model, &mut tuner, &session.data.tasks)?;
        journal.say(&format!("the best step by {} was {step}: using it", session.config.train.best_metric));
    }
    let after = match session.config.train.evaluate_after {
        true => measure(&session, reference.as_ref(), quiet)?,
        false => Value::Object(Map::new()),
    };
    if session.config.train.export {
        export(&session, &run, &journal)?;
    }
    let training = summary::training(&run.path)?;
    let result = json!({
        "run": run.path.display().to_string(), "before": before, "after": after, "training": training,
    });
    crate::files::write_atomically(&run.join("result.json"), result.to_string().as_bytes())?;
    summary::write_report(&run.path)?;
    let legend = if matches!(source, Source::Demo(_)) { demo::LEGEND } else { "" };
    summary::print(&result, args.output.json, legend)
}

/// The basis given, kept by an earlier start of the run, or learned now.
fn knowledge(
    session: &Session,
    run: &RunDirectory,
    args: &TrainArgs,
    quiet: bool,
) -> Result<Option<KnowledgeBasis>> {
    if !session.needs_basis() {
        return Ok(None);
    }
    let kept = run.join("basis.safetensors");
    let basis = match (&args.basis, args.resume && kept.is_file()) {
        (_, true) => return KnowledgeBasis::load(&kept, &session.model.fingerprint).map(Some),
        (Some(path), _) => given_basis(path, session)?,
        (None, _) => {
            let mut progress = Progress::new("knowledge basis, tokens", 0, quiet);
            let basis =
                session.learn_basis(&mut |done, all| progress.tick(done as u64, || format!("of {all}")));
            progress.finish();
            basis?
        }
    };
    basis.save(&kept)?;
    Ok(Some(basis))
}

/// The basis in a file, which must be of this model and side.
fn given_basis(path: &Path, session: &Session) -> Result<KnowledgeBasis> {
    let basis = KnowledgeBasis::load(path, &session.model.fingerprint)?;
    let side = session.config.null_space.side;
    if side != crate::gems::NullSide::None && basis.side != side {
        let what = format!("this basis is of the {:?} side, null_space.side is {side:?}", basis.side);
        return Err(Error::usage(what)
            .at(path.display())
            .remedy("make one for this side with `gems-engine basis`"));
    }
    Ok(basis)
}

fn tune(
    session: &mut Session,
    run: &RunDirectory,
    knowledge: Option<&KnowledgeBasis>,
    args: &TrainArgs,
    journal: &Journal,
) -> Result<crate::train::Outcome> {
    let mut tuner = session.tuner(knowledge)?;
    let interrupted = super::catch_interrupts()?;
    let Session { config, data, vocabulary, prompts, model, prompt_side, .. } = session;
    let encoder = crate::data::Encoder::new(vocabulary, prompts, &data.tasks, *prompt_side, &config.data);
    let (averaging, t) = (Averaging::from(config.gems.side), &config.train);
    let batches = Batches::new(&encoder, &data.train, &data.tasks, t, averaging, config.seed)?;
    let keep = match args.resume {
        true => checkpoint::list(&run.join("checkpoints"))?.last().map_or(0, |(step, _)| *step),
        false => 0,
    };
    let mut listener =
        Console::open(run, journal, &data.tasks, (keep, config.train.steps), args.resume, args.output.json)?;
    let norms = match &args.match_step {
        Some(path) => Some(update_norms(path)?),
        None => None,
    };
    let evaluate = EvaluateSettings { records: config.train.validate_records, ..config.evaluate.clone() };
    let mut validate = |model: &Model| validation::measure(model, &encoder, data, &evaluate);
    let mut trainer = Trainer {
        model,
        tuner: &mut tuner,
        batches: &batches,
        tasks: &data.tasks,
        settings: &config.train,
        checkpoints: &config.checkpoint,
        run,
        lr_rows: config.optimizer.lr_rows.unwrap_or(config.train.lr),
        warmup_from_zero: config.gems.side == Side::Published,
        norms,
        interrupted,
    };
    let outcome = trainer.run(args.resume, &mut listener, &mut validate);
    let told = listener.finish();
    let outcome = outcome?;
    told.map(|()| outcome)
}

/// The update norms of another run's steps.
fn update_norms(run: &Path) -> Result<Vec<f64>> {
    let lines = read(&run.join("metrics.jsonl"))?;
    let norms: Vec<f64> = lines.iter().filter_map(|l| l.get("update_norm")?.as_f64()).collect();
    if norms.is_empty() {
        return Err(Error::usage("no update norms to match here")
            .at(run.display())
            .remedy("give a run directory"));
    }
    Ok(norms)
}

/// A few test prompts, to compare logits with.
pub fn probe(session: &Session) -> Result<crate::model::Inference> {
    let encoder = session.encoder();
    let split = session.data.tests().find(|s| !s.records.is_empty()).unwrap_or(&session.data.train);
    let records = split.records.iter().filter(|r| r.text.is_none()).take(4);
    let mut prompts: Vec<Vec<u32>> = records.map(|r| encoder.prompt(r)).collect::<Result<_>>()?;
    prompts.retain(|p| p.len() > 1);
    if prompts.is_empty() {
        prompts.push((0..8.min(session.old_vocabulary as u32)).collect());
    }
    Ok(crate::model::general_pass(&session.model, &prompts))
}

fn export(session: &Session, run: &RunDirectory, journal: &Journal) -> Result<()> {
    let dir = run.join("model");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(|e| Error::io("replace", &dir, e))?;
    }
    let tokenizer = |dir: &Path| session.vocabulary.save(dir, &session.data.items);
    let worst =
        write_merged(&session.model, &session.base, &dir, StoredType::F32, &tokenizer, &probe(session)?)?;
    journal.say(&format!("wrote {} (largest logit difference on reading back: {worst:.1e})", dir.display()));
    Ok(())
}
