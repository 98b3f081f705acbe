//! All results of a race as one table of points, and what becomes of it when seeds, requests and texts are drawn again.

use super::curve::Point;
use super::grid::Grid;
use super::methods::PLAIN;
use super::outcome::Outcome;
use crate::random::{self, Purpose};
use rand::RngExt;
use rayon::prelude::*;

/// A method at one learning rate: its runs, one a seed.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The method.
    pub method: String,
    /// The only task it learned, where it was not all.
    pub alone: Option<String>,
    /// The learning rate.
    pub lr: f64,
    /// By seed; `None`: no result.
    pub runs: Vec<Option<Outcome>>,
}

/// Every entry of a race, by method and ascending learning rate; a task alone after its method.
#[derive(Debug, Clone)]
pub struct Field {
    /// The tasks that are judged: those with test requests and validation records.
    pub tasks: Vec<String>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// One drawing of the table: the ranking metric by task, and the divergence, of every entry that has all seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// (by task, KL), by entry.
    pub cells: Vec<Option<(Vec<f64>, f64)>>,
}

impl Entry {
    /// Whether every seed has a result.
    pub fn is_whole(&self) -> bool {
        self.runs.iter().all(Option::is_some)
    }

    /// Mean over seeds of the validation metric of a task.
    pub fn valid(&self, task: &str) -> Option<f64> {
        let all: Option<Vec<f64>> = self.runs.iter().map(|r| r.as_ref()?.valid.get(task).copied()).collect();
        all.map(|all| all.iter().sum::<f64>() / all.len().max(1) as f64)
    }

    /// Mean over seeds of a fact of training.
    pub fn fact(&self, key: &str) -> Option<f64> {
        let each: Option<Vec<f64>> =
            self.runs.iter().map(|r| r.as_ref()?.training.get(key)?.as_f64()).collect();
        each.filter(|e| !e.is_empty()).map(|each| each.iter().sum::<f64>() / each.len() as f64)
    }

    /// Mean over seeds of a fact of every layer; empty where a seed has none. NaN where a layer has no value.
    pub fn by_layer(&self, key: &str) -> Vec<f64> {
        let of = |run: &Option<Outcome>| -> Option<Vec<f64>> {
            let values = run.as_ref()?.training.get(key)?.as_array()?;
            Some(values.iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect())
        };
        let each: Vec<Vec<f64>> = self.runs.iter().map_while(of).collect();
        let layers = each.iter().map(Vec::len).min().filter(|_| each.len() == self.runs.len()).unwrap_or(0);
        let mean = |layer: usize| each.iter().map(|run| run[layer]).sum::<f64>() / each.len() as f64;
        (0..layers).map(mean).collect()
    }
}

impl Field {
    /// The empty table of a grid.
    pub fn new(grid: &Grid, tasks: Vec<String>) -> Self {
        let mut entries = Vec::new();
        for (number, method) in grid.methods.iter().enumerate() {
            let alone = grid.alone.iter().filter(|_| method.name == PLAIN).cloned().map(Some);
            for alone in std::iter::once(None).chain(alone) {
                entries.extend(grid.rates[number].iter().map(|lr| Entry {
                    method: method.name.clone(),
                    alone: alone.clone(),
                    lr: *lr,
                    runs: vec![None; grid.seeds.len()],
                }));
            }
        }
        Self { tasks, seeds: grid.seeds.clone(), entries }
    }

    /// The entries of a method that learns all tasks (or `alone` only), by their places.
    pub fn places(&self, method: &str, alone: Option<&str>) -> Vec<usize> {
        let is = |e: &Entry| e.method == method && e.alone.as_deref() == alone;
        (0..self.entries.len()).filter(|i| is(&self.entries[*i])).collect()
    }

    /// The table as it was measured.
    pub fn measured(&self) -> Table {
        self.weighted(&vec![1.0; self.seeds.len()], &|_, n| vec![1.0; n])
    }

    /// The table of one seed, by its place.
    pub fn of_seed(&self, place: usize) -> Table {
        let weights: Vec<f64> = (0..self.seeds.len()).map(|s| f64::from(s == place)).collect();
        self.weighted(&weights, &|_, n| vec![1.0; n])
    }

    /// The ranking metric of every request of a task under an entry minus that under another, in the mean over seeds.
    pub fn differences(&self, first: usize, second: usize, task: usize) -> Option<Vec<f64>> {
        let (first, second, name) = (&self.entries[first], &self.entries[second], &self.tasks[task]);
        let mut sums: Vec<f64> = Vec::new();
        for (a, b) in first.runs.iter().zip(&second.runs) {
            let (a, b) = (a.as_ref()?.requests.get(name)?, b.as_ref()?.requests.get(name)?);
            sums.resize(a.len(), 0.0);
            sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += b - a);
        }
        sums.iter_mut().for_each(|sum| *sum /= self.seeds.len().max(1) as f64);
        Some(sums)
    }

    /// `count` tables with seeds, requests of every task and texts each drawn again with replacement, the same draw for
    /// all entries: the bootstrap of crossed factors of Owen (2007, "The pigeonhole bootstrap"), paired.
    pub fn resampled(&self, count: usize, seed: u64) -> Vec<Table> {
        (0..count as u64)
            .into_par_iter()
            .map(|number| {
                let draw = |factor: usize, n: usize| {
                    let mut stream = random::stream(seed, Purpose::Resampling, number, 2 + factor as u64);
                    let mut counts = vec![0.0; n];
                    (0..n).for_each(|_| counts[stream.random_range(0..n)] += 1.0);
                    counts
                };
                self.weighted(&draw(0, self.seeds.len()), &|factor, n| draw(1 + factor, n))
            })
            .collect()
    }

    /// The table with these weights of the seeds, and those of `units(factor, n)` of the requests of task `factor` and,
    /// last, of the texts.
    fn weighted(&self, seeds: &[f64], units: &dyn Fn(usize, usize) -> Vec<f64>) -> Table {
        let some = self.entries.iter().flat_map(|e| &e.runs).flatten().next();
        let size = |task: &String| some.and_then(|o| o.requests.get(task)).map_or(0, Vec::len);
        let of_task: Vec<Vec<f64>> =
            self.tasks.iter().enumerate().map(|(t, task)| units(t, size(task))).collect();
        let of_texts = units(self.tasks.len(), some.map_or(0, |o| o.divergence.len()));
        let total: f64 = seeds.iter().sum();
        let cells = self.entries.iter().map(|entry| {
            let mut sums = (vec![0.0; self.tasks.len()], 0.0);
            for (run, weight) in entry.runs.iter().zip(seeds) {
                let run = run.as_ref()?;
                if *weight == 0.0 {
                    continue;
                }
                for (t, task) in self.tasks.iter().enumerate() {
                    let values = run.requests.get(task)?;
                    sums.0[t] += weight / total * mean(values, &of_task[t]);
                }
                let tokens: f64 = dot(&run.tokens, &of_texts);
                sums.1 += weight / total * dot(&run.divergence, &of_texts) / tokens.max(1.0);
            }
            Some(sums)
        });
        Table { cells: cells.collect() }
    }
}

impl Table {
    /// Mean over tasks of the ranking metric, and the divergence, of an entry.
    pub fn point(&self, entry: usize) -> Option<Point> {
        let (tasks, kl) = self.cells[entry].as_ref()?;
        Some(Point { quality: tasks.iter().sum::<f64>() / tasks.len().max(1) as f64, kl: *kl })
    }

    /// The ranking metric of one task.
    pub fn task(&self, entry: usize, task: usize) -> Option<f64> {
        Some(self.cells[entry].as_ref()?.0[task])
    }

    /// The points of those of `entries` that have all seeds.
    pub fn curve(&self, entries: &[usize]) -> Vec<Point> {
        entries.iter().filter_map(|e| self.point(*e)).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn mean(values: &[f64], weights: &[f64]) -> f64 {
    dot(values, weights) / weights.iter().sum::<f64>().max(1e-300)
}
