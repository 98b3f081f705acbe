//! `gems-engine train`.

use super::measure::{measure, reference};
use super::options::{DeviceArgs, OutputArgs, SettingsArgs};
use super::session::{Session, configuration, run_configuration};
use crate::config::{Config, Layer};
use crate::error::{Error, Kind, Result};
use crate::eval::{EvaluateSettings, rank_split};
use crate::export::write_merged;
use crate::gems::{KnowledgeBasis, RefreshReport, Side};
use crate::model::{BatchShape, MemoryPlan, Model, StoredType};
use crate::report::{MetricsLog, Progress, before_after, read};
use crate::train::run::RunDirectory;
use crate::train::{Ending, Listener, StepRecord, Trainer, checkpoint, refresh_json, restore};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tune a model for search and recommendation together.
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

    fn configuration(&self) -> Result<Config> {
        if self.resume {
            let out = self.out.as_deref().ok_or_else(|| {
                Error::usage("--resume needs to know which run").remedy("give the run's directory with --out")
            })?;
            // Only what a resumed run may change without becoming another run.
            let mut config = run_configuration(out, &self.settings, &self.device)?;
            config.train.steps = self.steps.unwrap_or(config.train.steps);
            return Ok(config);
        }
        let settings = SettingsArgs { config: self.settings.config.clone(), set: self.settings.set.clone() };
        let mut layers = Vec::new();
        if let Some(preset) = &self.preset {
            layers.push(Layer::preset(preset)?);
        }
        layers.extend(settings.layers()?);
        layers.extend(self.flags());
        configuration(&SettingsArgs::default(), &self.device, layers)
    }

    fn out(&self, config: &Config) -> PathBuf {
        self.out.clone().unwrap_or_else(|| {
            let name = Path::new(&config.data.path)
                .file_name()
                .map_or("run".into(), |n| n.to_string_lossy().into_owned());
            RunDirectory::fresh(Path::new("runs"), &name)
        })
    }
}

/// Runs the command.
pub fn run(args: &TrainArgs) -> Result<()> {
    let config = args.configuration()?;
    let quiet = args.output.json;
    let mut session = Session::open(config, &args.device)?;
    if args.dry_run {
        return plan(&mut session, args.output.json);
    }
    let run = RunDirectory::open(&args.out(&session.config), args.resume)?;
    crate::files::write_atomically(&run.join("config.toml"), session.config.to_toml().as_bytes())?;
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
    let outcome = tune(&mut session, &run, knowledge.as_ref(), args, quiet)?;
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
        let tasks = session.data.tasks.clone();
        restore(&mut session.model, &mut tuner, &tasks, &found)?;
        say(quiet, &format!("the best step by {} was {step}: using it", session.config.train.best_metric));
    }
    let after = match session.config.train.evaluate_after {
        true => measure(&session, reference.as_ref(), quiet)?,
        false => Value::Object(Map::new()),
    };
    if session.config.train.export {
        export(&session, &run, quiet)?;
    }
    let result = json!({"run": run.path.display().to_string(), "before": before, "after": after});
    crate::files::write_atomically(&run.join("result.json"), result.to_string().as_bytes())?;
    print(&result, args.output.json)
}

fn print(result: &Value, json: bool) -> Result<()> {
    let mut out = std::io::stdout();
    let written = match json {
        true => writeln!(out, "{result}"),
        false => {
            let table = before_after(Some(&result["before"]), &result["after"]);
            writeln!(out, "{table}\n{}", result["run"].as_str().unwrap_or_default())
        }
    };
    written.map_err(|e| Error::io("write", "standard output", e))
}

fn say(quiet: bool, text: &str) {
    if !quiet {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
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
        (Some(path), _) => {
            let basis = KnowledgeBasis::load(path, &session.model.fingerprint)?;
            let side = session.config.null_space.side;
            if side != crate::gems::NullSide::None && basis.side != side {
                return Err(Error::usage(format!(
                    "this basis is of the {:?} side, null_space.side is {side:?}",
                    basis.side
                ))
                .at(path.display())
                .remedy("make one for this side with `gems-engine basis`"));
            }
            basis
        }
        (None, _) => {
            let mut progress = Progress::new("knowledge basis", 0, quiet);
            let basis = session
                .learn_basis(&mut |done, all| progress.tick(done as u64, || format!("of {all} tokens")));
            progress.finish();
            basis?
        }
    };
    basis.save(&kept)?;
    Ok(Some(basis))
}

fn tune(
    session: &mut Session,
    run: &RunDirectory,
    knowledge: Option<&KnowledgeBasis>,
    args: &TrainArgs,
    quiet: bool,
) -> Result<crate::train::Outcome> {
    let mut tuner = session.tuner(knowledge)?;
    let interrupted = super::catch_interrupts()?;
    let Session { config, data, vocabulary, prompts, model, architecture, .. } = session;
    let encoder = crate::data::Encoder::new(vocabulary, prompts, &data.tasks, *architecture, &config.data);
    let keep = match args.resume {
        true => checkpoint::list(&run.join("checkpoints"))?.last().map_or(0, |(step, _)| *step),
        false => 0,
    };
    let mut listener = Console {
        tasks: data.tasks.clone(),
        log: MetricsLog::open(&run.join("metrics.jsonl"), keep)?,
        progress: Progress::new("training", config.train.steps, quiet),
    };
    let norms = match &args.match_step {
        Some(path) => Some(update_norms(path)?),
        None => None,
    };
    let evaluate = EvaluateSettings { records: config.train.validate_records, ..config.evaluate.clone() };
    let mut validate = |model: &Model| -> Result<BTreeMap<String, f64>> {
        let ranked = rank_split(model, &encoder, data, &data.valid, &evaluate, &mut |_, _| {})?;
        let metrics = ranked.metrics(&data.tasks, &evaluate);
        let flat = metrics
            .into_iter()
            .flat_map(|(task, m)| m.into_iter().map(move |(k, v)| (format!("{task}.{k}"), v)));
        Ok(flat.collect())
    };
    let mut trainer = Trainer {
        model,
        tuner: &mut tuner,
        encoder: &encoder,
        tasks: &data.tasks,
        train: &data.train,
        settings: &config.train,
        checkpoints: &config.checkpoint,
        run,
        seed: config.seed,
        lr_rows: config.optimizer.lr_rows.unwrap_or(config.train.lr),
        published: config.gems.side == Side::Published,
        norms,
        interrupted,
    };
    let outcome = trainer.run(args.resume, &mut listener, &mut validate);
    listener.progress.finish();
    outcome
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

struct Console {
    tasks: Vec<String>,
    log: MetricsLog,
    progress: Progress,
}

impl Listener for Console {
    fn probed(&mut self, refresh: &RefreshReport) -> Result<()> {
        let mut line = Map::from_iter([("step".to_string(), json!(0))]);
        line.extend(refresh_json(refresh, &self.tasks));
        self.log.write(&line)
    }
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.log.write(&record.to_json(&self.tasks))?;
        let tasks = &self.tasks;
        self.progress.tick(record.step, || {
            let losses: Vec<String> =
                tasks.iter().zip(&record.losses).map(|(t, l)| format!("{t} {l:.3}")).collect();
            let gates: Vec<String> = record.report.gates.iter().map(|g| format!("{g:.2}")).collect();
            format!(
                "loss {} gates {} {:.0} tokens/s {:.0} MB",
                losses.join(" "),
                gates.join("/"),
                record.tokens as f64 / record.seconds.max(1e-9),
                record.memory.1 as f64 / 1e6
            )
        });
        Ok(())
    }
    fn validated(&mut self, step: u64, metrics: &BTreeMap<String, f64>, best: bool) -> Result<()> {
        let mut line = Map::from_iter([("step".to_string(), json!(step)), ("best".to_string(), json!(best))]);
        line.extend(metrics.iter().map(|(k, v)| (format!("valid.{k}"), json!(v))));
        self.log.write(&line)
    }
    fn saved(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
    fn note(&mut self, text: &str) {
        self.progress.note(text);
    }
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

fn export(session: &Session, run: &RunDirectory, quiet: bool) -> Result<()> {
    let dir = run.join("model");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(|e| Error::io("replace", &dir, e))?;
    }
    let tokenizer = |dir: &Path| session.vocabulary.save(dir, &session.data.items);
    let worst =
        write_merged(&session.model, &session.base, &dir, StoredType::F32, &tokenizer, &probe(session)?)?;
    say(quiet, &format!("wrote {} (largest logit difference on reading back: {worst:.1e})", dir.display()));
    Ok(())
}

/// `--dry-run`: what would be done, and what it needs.
fn plan(session: &mut Session, json: bool) -> Result<()> {
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
