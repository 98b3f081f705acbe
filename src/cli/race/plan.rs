//! What a race will run: checked, counted and told before anything is computed.

use super::RaceArgs;
use crate::cli::demo;
use crate::cli::options::SettingsArgs;
use crate::cli::session::configuration;
use crate::config::{Config, Layer};
use crate::data::{Dataset, GeneralText, Split};
use crate::error::{Error, Result};
use crate::race::{Cell, Common, Files, Grid, Kept, Made, Methods, files, rows_by_task};
use crate::run::whole;
use crate::train::needs_basis;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Everything that is known of a race before it starts.
pub(super) struct Plan {
    pub out: PathBuf,
    pub methods: Methods,
    pub grid: Grid,
    pub common: Common,
    /// Settings that all cells share.
    pub config: Config,
    /// In the order in which they run, each with its settings.
    pub cells: Vec<(Cell, Config)>,
    /// Tasks with validation records and test requests.
    pub judged: Vec<String>,
    /// Hashes of model and data; empty until they are read.
    pub files: Files,
    pub metric: String,
    pub within: f64,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// Of the command line. Reads the data, not the model.
    ///
    /// # Errors
    /// Settings that cannot be used or are the race's own; data on which nothing could be compared.
    pub fn of(args: &RaceArgs) -> Result<Self> {
        check(args)?;
        let methods = Methods::read(args.methods_from.as_deref())?;
        let chosen = methods.chosen(&args.methods)?;
        let (out, layers) = layers(args, &methods)?;
        let tables = |layers: &[Layer]| layers.iter().map(|l| l.table.clone()).collect::<Vec<_>>();
        let common = Common { layers: tables(&layers), batch: BTreeMap::new(), tasks: Vec::new() };
        let config = configuration(&SettingsArgs::default(), &args.device, layers)?;
        let data = Dataset::load(Path::new(&config.data.path), &config.data)?;
        let judged = judged(&data)?;
        check_general(&config, &data)?;
        let metric = metric(&config);
        let steps = args.steps.unwrap_or(if args.minutes.is_some() { 1 } else { config.train.steps });
        let mut grid = Grid::new(chosen, config.train.lr, &args.lr, &args.seeds, steps)?;
        let mut plan = Self {
            common: whole_paths(common, &config, &data),
            notes: Vec::new(),
            cells: Vec::new(),
            files: Files::new(),
            within: args.within,
            metric,
            judged,
            methods,
            config,
            out,
            grid: grid.clone(),
        };
        grid.alone = plan.alone(args);
        plan.grid = grid;
        plan.lay_out()?;
        if args.minutes.is_some() {
            plan.notes.push(
                "steps are measured when the race begins: until then their number means nothing".into(),
            );
        } else {
            plan.notes.extend(plan.cells.last().map(|(_, config)| config.notes()).unwrap_or_default());
        }
        Ok(plan)
    }

    /// The tasks that are learned alone too; says where there is nothing to measure.
    fn alone(&mut self, args: &RaceArgs) -> Vec<String> {
        let learned = self.common.batch.values().filter(|rows| **rows > 0).count();
        if learned < 2 {
            self.notes
                .push("these data have one task: interference between tasks has no meaning here".into());
        } else if args.no_alone {
            self.notes.push("no task is learned alone: interference is not measured".into());
        } else {
            let learned = |task: &&String| self.common.batch.get(*task).is_some_and(|rows| *rows > 0);
            return self.judged.iter().filter(learned).cloned().collect();
        }
        Vec::new()
    }

    /// All cells with their settings.
    pub fn lay_out(&mut self) -> Result<()> {
        let with = |cell: Cell| Ok((cell.clone(), self.common.settings(&self.methods, &cell)?));
        self.cells = self.grid.cells().into_iter().map(with).collect::<Result<_>>()?;
        Ok(())
    }

    /// Whether any cell needs a knowledge basis.
    pub fn needs_basis(&self) -> bool {
        self.cells.iter().any(|(_, config)| needs_basis(&config.null_space, true))
    }

    /// The file of a finished cell.
    pub fn file(&self, cell: &Cell) -> PathBuf {
        self.out.join("cells").join(format!("{}.json", cell.name(&self.common.tasks)))
    }

    /// Hashes model, data and a basis that was given.
    pub fn read_files(&mut self, args: &RaceArgs) -> Result<()> {
        self.files = files(Path::new(&self.config.model.path), Path::new(&self.config.data.path))?;
        if let Some(path) = &args.basis {
            let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
            self.files.insert("basis".into(), blake3::hash(&bytes).to_hex().to_string());
        }
        Ok(())
    }

    /// What a cell is made with now.
    pub fn made(&self, config: &Config) -> Made {
        Made::of(config, &self.files)
    }

    /// The cells that have a result already, by their place. A result that was made with something else is refused, or
    /// removed when `afresh`.
    pub fn kept(&self, afresh: bool) -> Result<BTreeMap<usize, Kept>> {
        let (mut all, mut stale) = (BTreeMap::new(), Vec::new());
        for (place, (cell, config)) in self.cells.iter().enumerate() {
            let path = self.file(cell);
            let Some(kept) = Kept::read(&path)? else { continue };
            let differences = kept.made.differences(&self.made(config));
            if differences.is_empty() {
                all.insert(place, kept);
            } else if afresh {
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            } else {
                stale.push((cell.name(&self.common.tasks), differences));
            }
        }
        let Some((name, differences)) = stale.first() else { return Ok(all) };
        let shown = differences.iter().take(4).cloned().collect::<Vec<_>>().join("; ");
        let more = if differences.len() > 4 { "; .." } else { "" };
        let what = format!("{} of the results here are of another race. {name}: {shown}{more}", stale.len());
        let how = "put it back, choose another --out, or give --afresh, which runs these cells anew";
        Err(Error::usage(what).at(self.out.display()).remedy(how))
    }

    /// Prints what would be run.
    pub fn print(&self, json: bool) -> Result<()> {
        let names: Vec<String> = self.cells.iter().map(|(cell, _)| cell.name(&self.common.tasks)).collect();
        let done = self.cells.iter().filter(|(cell, _)| self.file(cell).is_file()).count();
        let steps: u64 = self.cells.iter().map(|(cell, _)| cell.steps).sum();
        let model = weights(Path::new(&self.config.model.path));
        let text = match json {
            true => json!({"cells": names, "with_a_result": done, "steps": steps, "rows_a_step": self.common.batch,
                "tasks": self.judged, "alone": self.grid.alone, "notes": self.notes, "weights_bytes": model,
                "learns_a_knowledge_basis": self.needs_basis()})
            .to_string(),
            false => self.described(done, steps, model),
        };
        writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("write", "standard output", e))
    }

    fn described(&self, done: usize, steps: u64, model: u64) -> String {
        let mut text = String::new();
        for (method, rates) in self.grid.methods.iter().zip(&self.grid.rates) {
            let rates: Vec<String> = rates.iter().map(f64::to_string).collect();
            text += &format!("{:<24} lr {}\n", method.name, rates.join(", "));
            text += &format!("{:<24} {}\n", "", method.says);
        }
        let rows: Vec<String> = self.common.batch.iter().map(|(task, n)| format!("{n} {task}")).collect();
        if !self.grid.alone.is_empty() {
            text += &format!("each task alone too, by plain: {}\n", self.grid.alone.join(", "));
        }
        text += &format!("rows of a step: {}\n", rows.join(", "));
        let seeds = self.grid.seeds.len();
        let cells = self.cells.len();
        text +=
            &format!("{cells} cells of {seeds} seeds, {steps} steps in all; {done} have a result already\n");
        text += &format!(
            "disk: results of some kB a cell; a cell that runs holds its checkpoints, each up to about {} MB\n",
            4 * model / 1_000_000 + 1
        );
        self.notes.iter().for_each(|note| text += &format!("{note}\n"));
        text.trim_end().into()
    }
}

fn check(args: &RaceArgs) -> Result<()> {
    let refuse = |what: String, at: &str, how: &str| Err(Error::usage(what).at(at).remedy(how));
    if !(0.0..1.0).contains(&args.within) {
        return refuse(format!("{} is no share", args.within), "--within", "0 or more, less than 1");
    }
    if args.minutes.is_some_and(|m| !m.is_finite() || m <= 0.0) {
        return refuse("a time above 0 is needed".into(), "--minutes", "such as 5");
    }
    if args.jobs == 0 {
        return refuse("no cell at a time".into(), "--jobs", "1 or more");
    }
    match (&args.model, &args.data) {
        (Some(_), None) => refuse("and the data?".into(), "--model", "give --data too, or neither: the demo"),
        (None, Some(_)) => {
            refuse("and the model?".into(), "--data", "give --model too, or neither: the demo")
        }
        _ => Ok(()),
    }
}

/// The race's directory, and the settings beneath all methods.
fn layers(args: &RaceArgs, methods: &Methods) -> Result<(PathBuf, Vec<Layer>)> {
    let (mut file, mut given) = (Vec::new(), Vec::new());
    if let Some(path) = &args.settings.config {
        file.push(Layer::file(path)?);
    }
    for assignment in &args.settings.set {
        given.push(Layer::assignment(assignment)?);
    }
    methods.check_common(&given)?;
    let text = |p: &Path| toml::Value::from(p.display().to_string());
    let (out, mut all) = match (&args.model, &args.data) {
        (Some(model), Some(data)) => {
            let name = data.file_name().map_or("race".into(), |n| n.to_string_lossy());
            let out = args.out.clone().unwrap_or_else(|| Path::new("races").join(&*name));
            let paths = vec![
                Layer::value("--model", "model.path", text(model)),
                Layer::value("--data", "data.path", text(data)),
            ];
            (out, paths)
        }
        _ => {
            let out = args.out.clone().unwrap_or_else(|| PathBuf::from("races/demo"));
            let inside = out.join(demo::INSIDE);
            demo::unpack(&inside)?;
            (out, demo::settings(&inside)?)
        }
    };
    // What the demo or the flags say of paths stands above the file.
    let paths = all.split_off(all.len() - 2);
    all.extend(file);
    all.extend(given);
    all.extend(paths);
    all.extend(crate::cli::session::device_layer(&args.device));
    Ok((out, all))
}

/// The tasks that can be compared: those with validation records and test requests.
fn judged(data: &Dataset) -> Result<Vec<String>> {
    let asks = |split: &Split, task: usize| {
        split.records.iter().any(|r| r.task as usize == task && !r.target.is_empty())
    };
    let with = |split: &Split| (0..data.tasks.len()).any(|task| asks(split, task));
    for (split, why) in [(&data.valid, "learning rates are chosen"), (&data.test, "methods are compared")] {
        if !with(split) {
            return Err(Error::data(format!("no records of this split to rank: {why} on them"))
                .at(&split.name)
                .remedy("add them; `gems-engine prepare` splits logs into train, valid and test"));
        }
    }
    let both = |task: &usize| asks(&data.valid, *task) && asks(&data.test, *task);
    let all: Vec<String> = (0..data.tasks.len()).filter(both).map(|t| data.tasks[t].clone()).collect();
    match all.is_empty() {
        true => Err(Error::data("no task has both validation records and test requests")),
        false => Ok(all),
    }
}

/// A race without general text would weigh ranking against nothing.
fn check_general(config: &Config, data: &Dataset) -> Result<()> {
    let text = GeneralText::load(&data.general, &config.data)?;
    let (what, empty) = match (text.calibration.is_empty(), text.held_out.is_empty()) {
        (_, true) => {
            ("there is no held-out general text: the divergence from the base model cannot be measured", true)
        }
        (true, _) => {
            ("there is no general text to learn from: nothing could be protected or rehearsed", true)
        }
        _ => ("", false),
    };
    match empty {
        true => Err(Error::data(what)
            .at(&config.data.path)
            .remedy("add general.txt; `gems-engine prepare sample` writes some")),
        false => Ok(()),
    }
}

/// The metric that is compared: NDCG at 10, or at the largest cut-off.
fn metric(config: &Config) -> String {
    crate::eval::compared(&config.evaluate)[0].clone()
}

/// The same with paths from the root, the tasks, and rows of every task in a step.
fn whole_paths(common: Common, config: &Config, data: &Dataset) -> Common {
    let path = |key: &str, path: &str| {
        Layer::value("", key, toml::Value::from(whole(Path::new(path)).display().to_string())).table
    };
    let mut layers = common.layers;
    layers.push(path("model.path", &config.model.path));
    layers.push(path("data.path", &config.data.path));
    let batch = rows_by_task(data, &config.train.batch_per_task, config.train.batch);
    Common { layers, batch, tasks: data.tasks.clone() }
}

/// Bytes of the model's weights.
fn weights(model: &Path) -> u64 {
    let files = std::fs::read_dir(model).into_iter().flatten().flatten();
    let named = files.filter(|f| f.file_name().to_string_lossy().ends_with(".safetensors"));
    named.filter_map(|f| Some(std::fs::metadata(f.path()).ok()?.len())).sum()
}
