//! The cells of a race: method x learning rate x seed, all tasks together or one alone, each with settings of its own.

use super::methods::{Method, Methods, PLAIN};
use crate::config::{Config, Layer};
use crate::data::{Dataset, Encoder};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// One run of a race.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Its method; empty for the base model, which takes no step.
    pub method: String,
    /// The only task that it learns, where it is not all.
    pub alone: Option<String>,
    /// Learning rate of the adapted layers at the top of the schedule.
    pub lr: f64,
    /// Seed of data order, sketches and initial values.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
}

impl Cell {
    /// The base model with new item rows, as it is before the first step.
    pub fn base(seed: u64) -> Self {
        Self { method: String::new(), alone: None, lr: 0.0, seed, steps: 0 }
    }

    /// Its name in files and messages; `tasks` number what file names cannot hold.
    pub fn name(&self, tasks: &[String]) -> String {
        if self.method.is_empty() {
            return "base".into();
        }
        let alone = self.alone.as_ref().map_or(String::new(), |task| {
            let number = tasks.iter().position(|t| t == task).map_or(0, |n| n + 1);
            let plain: String =
                task.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
            format!(".only-{number}-{}", plain.chars().take(40).collect::<String>())
        });
        format!("{}{alone}.lr-{}.seed-{}", self.method, self.lr, self.seed)
    }
}

/// How a race is laid out.
#[derive(Debug, Clone)]
pub struct Grid {
    /// The methods, [`PLAIN`] first met among them.
    pub methods: Vec<Method>,
    /// The learning rates of every method, ascending.
    pub rates: Vec<Vec<f64>>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Steps of every method's cells.
    pub steps: Vec<u64>,
    /// Tasks that are also learned alone, by [`PLAIN`]: of one task only there is nothing to interfere.
    pub alone: Vec<String>,
}

impl Grid {
    /// The grid of `methods`: with learning rates `rates` for all (none: each method's own multiples of `lr`).
    ///
    /// # Errors
    /// Rates or seeds that are none, or twice the same.
    pub fn new(methods: Vec<Method>, lr: f64, rates: &[f64], seeds: &[u64], steps: u64) -> Result<Self> {
        if !rates.is_empty() {
            super::methods::check_rates(rates).map_err(|what| Error::usage(what).at("--lr"))?;
        }
        if let Some((_, seed)) = seeds.iter().enumerate().find(|(i, s)| seeds[..*i].contains(s)) {
            return Err(Error::usage(format!("seed {seed} stands twice")).at("--seeds"));
        }
        if seeds.is_empty() || steps == 0 {
            let (what, place) = if steps == 0 { ("0 steps", "--steps") } else { ("no seed", "--seeds") };
            return Err(Error::usage(what).at(place).remedy("give at least one"));
        }
        let own = |m: &Method| match rates.is_empty() {
            true => m.rates.iter().map(|r| rounded(r * lr)).collect(),
            false => rates.to_vec(),
        };
        let sorted = |mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            all
        };
        let rates = methods.iter().map(|m| sorted(own(m))).collect();
        let steps = vec![steps; methods.len()];
        Ok(Self { methods, rates, seeds: seeds.to_vec(), steps, alone: Vec::new() })
    }

    /// All cells in the order in which they run: the base model, then seed by seed, so that a race cut short has whole
    /// seeds.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = vec![Cell::base(self.seeds[0])];
        for seed in &self.seeds {
            for (number, method) in self.methods.iter().enumerate() {
                let cell = |lr: &f64, alone: Option<&String>| Cell {
                    method: method.name.clone(),
                    alone: alone.cloned(),
                    lr: *lr,
                    seed: *seed,
                    steps: self.steps[number],
                };
                cells.extend(self.rates[number].iter().map(|lr| cell(lr, None)));
                if method.name == PLAIN {
                    let tasks = self.alone.iter();
                    cells.extend(
                        tasks.flat_map(|task| self.rates[number].iter().map(move |lr| cell(lr, Some(task)))),
                    );
                }
            }
        }
        cells
    }
}

/// A product of decimals without the dust of binary fractions.
fn rounded(value: f64) -> f64 {
    format!("{value:.9e}").parse().unwrap_or(value)
}

/// The settings that all cells have beneath their methods.
#[derive(Debug, Clone)]
pub struct Common {
    /// Layers of the user and the demo.
    pub layers: Vec<Table>,
    /// Rows of every task in a step, so that a task alone sees the same rows.
    pub batch: BTreeMap<String, usize>,
    /// All tasks, in order.
    pub tasks: Vec<String>,
}

impl Common {
    /// The resolved settings of a cell.
    ///
    /// # Errors
    /// Settings that do not go together, with the cell's method.
    pub fn settings(&self, methods: &Methods, cell: &Cell) -> Result<Config> {
        let layer = |source: &str, table: Table| Layer::table(source, table);
        let mut layers: Vec<Layer> = self.layers.iter().map(|t| layer("settings", t.clone())).collect();
        layers.push(layer("settings of all methods", methods.shared.clone()));
        if let Some(method) = methods.all.iter().find(|m| m.name == cell.method) {
            layers.push(layer("its settings", method.settings.clone()));
        }
        let mut put = |key: &str, value: Value| layers.push(Layer::value("race", key, value));
        put("seed", Value::from(cell.seed as i64));
        put("train.steps", Value::from(cell.steps as i64));
        put("train.validate_every", Value::from(cell.steps as i64));
        put("train.patience", Value::from(0));
        put("train.evaluate_before", Value::from(false));
        put("train.evaluate_after", Value::from(true));
        put("train.export", Value::from(false));
        put("train.match_step", Value::from(""));
        put("train.best_metric", Value::from("loss"));
        if !cell.method.is_empty() {
            put("train.lr", Value::from(cell.lr));
        }
        let name = if cell.method.is_empty() { "the base model" } else { &cell.method };
        let mut config = Config::from_layers(layers).map_err(|e| e.at(format!("method `{name}`")))?;
        config.data.tasks = self.tasks.clone();
        config.train.batch_per_task = self.batch.clone();
        if let Some(task) = &cell.alone {
            config.train.batch_per_task.retain(|name, _| name == task);
        }
        Ok(config)
    }
}

/// Rows of every task in a step: as given by task, or shared in proportion to the tasks' examples, at least one each.
/// Largest remainders get what rounding leaves.
pub fn rows_by_task(
    data: &Dataset,
    given: &BTreeMap<String, usize>,
    batch: usize,
) -> BTreeMap<String, usize> {
    if !given.is_empty() {
        return given.clone();
    }
    let mut examples = vec![0usize; data.tasks.len()];
    data.train.records.iter().for_each(|r| examples[r.task as usize] += Encoder::examples(r));
    let tasks: Vec<usize> = (0..examples.len()).filter(|t| examples[*t] > 0).collect();
    let all: usize = examples.iter().sum::<usize>().max(1);
    let mut rows: Vec<usize> = examples.iter().map(|n| batch * n / all).collect();
    let mut by_remainder = tasks.clone();
    by_remainder.sort_by_key(|t| (std::cmp::Reverse(batch * examples[*t] % all), *t));
    let left = batch.saturating_sub(rows.iter().sum());
    by_remainder.iter().take(left).for_each(|t| rows[*t] += 1);
    tasks.into_iter().map(|t| (data.tasks[t].clone(), rows[t].max(1))).collect()
}
