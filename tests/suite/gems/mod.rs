//! The method against the published optimizer's recorded trajectories, PEFT, torch, f64 formulas and its own
//! invariants.

mod gates;
mod knowledge;
mod metric;
mod null_space;
mod optimizer;
mod published;
mod pull;
mod refresh;
mod rehearsal;
mod remainder;
mod resume;
mod step;
mod together;

use crate::support::{backend, numbers};
use gems_engine::backend::*;
use gems_engine::gems::*;
use gems_engine::layers::*;
use serde_json::Value;
use std::sync::Arc;

fn published_optimizer(case: &Value) -> OptimizerSettings {
    OptimizerSettings {
        beta1: case["betas"][0].as_f64().unwrap(),
        beta2: case["betas"][1].as_f64().unwrap(),
        eps: case["eps"].as_f64().unwrap(),
        eps_before_correction: true,
        weight_decay: case["weight_decay"].as_f64().unwrap(),
        decay: Decay::Weights,
        ..Default::default()
    }
}

fn floats(v: &Value) -> Vec<f64> {
    serde_json::from_value(v.clone()).unwrap()
}

fn narrow(v: &[f64]) -> Vec<f32> {
    v.iter().map(|x| *x as f32).collect()
}

/// Two linear layers and one table, whose gradients are random but the same at every run.
struct World {
    be: Arc<dyn Backend>,
    layers: Vec<AdaptedLinear>,
    table: Tensor,
    shapes: Vec<Site>,
}

const SHAPES: [(usize, usize); 2] = [(13, 24), (30, 17)];

fn site(index: usize, projection: Projection, (outputs, inputs): (usize, usize)) -> Site {
    let name = format!("layer.{index}");
    Site { name, projection, outputs, inputs, input_group: index, bias: false }
}

impl Layers for World {
    fn linears(&mut self) -> &mut [AdaptedLinear] {
        &mut self.layers
    }
    fn dense(&mut self, _: usize) -> MatMut<'_> {
        self.table.mat_mut()
    }
}

impl World {
    fn new() -> Self {
        Self::on(backend(), DType::F32)
    }

    /// A world with weights of this type.
    fn on(be: Arc<dyn Backend>, dtype: DType) -> Self {
        let layers = SHAPES
            .iter()
            .enumerate()
            .map(|(i, (m, n))| AdaptedLinear {
                weight: be.tensor(&numbers(i as u64, m * n), *m, *n, dtype).unwrap().into(),
                bias: None,
                branch: None,
            })
            .collect();
        let shapes = SHAPES
            .iter()
            .enumerate()
            .map(|(i, shape)| site(i, if i == 0 { Projection::Q } else { Projection::Up }, *shape))
            .collect();
        let table = be.tensor(&numbers(9, 11 * 7), 11, 7, DType::F32).unwrap();
        Self { be, layers, table, shapes }
    }

    /// Gradient material of a layer at a step: (x, dy), 9 + 6 rows, of low rank plus noise.
    fn material(&self, site: usize, step: u64, task_rows: [usize; 2]) -> (Tensor, Tensor) {
        let (m, n) = SHAPES[site];
        let rows = task_rows[0] + task_rows[1];
        let seed = 1000 + step * 10 + site as u64;
        // Inputs of unequal size, so that gradients have a decaying spectrum, as real ones do.
        let mut x = numbers(seed, rows * n);
        x.iter_mut().enumerate().for_each(|(i, v)| *v *= 0.8f32.powi((i % n) as i32));
        (
            self.be.tensor(&x, rows, n, DType::F32).unwrap(),
            self.be.tensor(&numbers(seed + 5, rows * m), rows, m, DType::F32).unwrap(),
        )
    }

    fn observe(&self, tuner: &mut Optimizer, step: u64, task_rows: [usize; 2]) {
        tuner.begin_pass(Scales::of(&task_rows));
        let segments = [0..task_rows[0], task_rows[0]..task_rows[0] + task_rows[1]];
        for site in 0..SHAPES.len() {
            let (x, dy) = self.material(site, step, task_rows);
            let (h, z) = match &self.layers[site].branch {
                Some(branch) => {
                    let mut h = self.be.alloc(x.rows(), branch.a.rows(), DType::F32).unwrap();
                    self.be.product(h.mat_mut(), 0.0, 1.0, x.mat().n(), branch.a.mat().t()).unwrap();
                    let mut z = self.be.alloc(x.rows(), branch.a.rows(), DType::F32).unwrap();
                    self.be.product(z.mat_mut(), 0.0, 1.0, dy.mat().n(), branch.b.mat().n()).unwrap();
                    (Some(h), Some(z))
                }
                None => (None, None),
            };
            let gradient = LinearGradient {
                x: x.mat(),
                dy: dy.mat(),
                h: h.as_ref().map(|t| t.mat()),
                z: z.as_ref().map(|t| t.mat()),
                segments: &segments,
            };
            tuner.linear(site, &gradient).unwrap();
        }
        if let Want::Rows { first_row, per_task } = tuner.wants(0) {
            let blocks = if per_task { 2 } else { 1 };
            let rows = blocks * (11 - first_row);
            let g = self.be.tensor(&numbers(2000 + step, rows * 7), rows, 7, DType::F32).unwrap();
            tuner.dense(0, g.mat()).unwrap();
        }
    }

    fn tuner(&mut self, settings: MethodSettings, knowledge: Option<&Knowledge>) -> Optimizer {
        let mut tuner = self.unprobed(settings, knowledge).unwrap();
        for round in 0..tuner.probe_rounds() {
            tuner.begin_probe(round).unwrap();
            for probe in 0..2 {
                self.observe(&mut tuner, 500 + probe, [9, 6]);
            }
            if round + 1 == tuner.probe_rounds() {
                tuner.finish_probe(self).unwrap();
                break;
            }
        }
        tuner
    }

    /// One without bases.
    fn unprobed(
        &mut self,
        settings: MethodSettings,
        knowledge: Option<&Knowledge>,
    ) -> gems_engine::error::Result<Optimizer> {
        let (be, shapes) = (Arc::clone(&self.be), self.shapes.clone());
        let roles = [Some(DenseRole::Rows { first_row: 4 })];
        Optimizer::new(settings, &shapes, &roles, 2, knowledge, self, &be, 7)
    }

    /// Rehearses made-up text, if it is due.
    fn rehearse(&self, tuner: &mut Optimizer, step: u64) {
        if tuner.rehearsal_is_due() {
            tuner.begin_rehearsal();
            self.observe(tuner, 700 + step, [4, 0]);
            let kl = self.be.tensor(&[0.25; 4], 4, 1, DType::F32).unwrap();
            tuner.finish_rehearsal(kl.mat()).unwrap();
        }
    }

    fn step(&mut self, tuner: &mut Optimizer, step: u64, rows: [usize; 2]) -> StepReport {
        self.step_of(tuner, step, rows, false)
    }

    /// The same, which may be the last.
    fn step_of(&mut self, tuner: &mut Optimizer, step: u64, rows: [usize; 2], last: bool) -> StepReport {
        tuner.begin_step().unwrap();
        self.rehearse(tuner, step);
        self.observe(tuner, step, rows);
        observe_losses(tuner, &self.be, &[1.0, 2.0]);
        let counts = rows.iter().map(|r| *r as f64).collect();
        let (labels, schedule) = (vec![1; 2], 0.5);
        let input =
            StepInput { labels, counts, lr: 0.01, lr_rows: 0.02, schedule, last, ..Default::default() };
        tuner.step(self, &input).unwrap()
    }

    /// W + B A of a layer.
    fn effective(&self, site: usize) -> Vec<f32> {
        let layer = &self.layers[site];
        let mut w = match &layer.weight {
            Weight::Whole(w) => self.be.duplicate(w.mat(), DType::F32).unwrap(),
            Weight::Quantised(from) => remainder::values(&*self.be, from),
        };
        if let Some(Branch { a, b }) = &layer.branch {
            self.be.product(w.mat_mut(), 1.0, 1.0, b.mat().n(), a.mat().n()).unwrap();
        }
        self.be.download(w.mat()).unwrap()
    }
}

/// Tells a tuner the summed loss of every task.
fn observe_losses(tuner: &mut Optimizer, be: &Arc<dyn Backend>, sums: &[f32]) {
    let losses = be.tensor(sums, sums.len(), 1, DType::F32).unwrap();
    let each: Vec<std::ops::Range<usize>> = (0..sums.len()).map(|t| t..t + 1).collect();
    tuner.observe_losses(losses.mat(), &each).unwrap();
}

/// Knowledge of the two layers whose k leading directions hold all there is to protect.
fn knowledge(side: NullSide, k: usize) -> Knowledge {
    let be = backend();
    let spectrum = |name: &str, dim: usize, seed: u64| {
        let mut rows = be.tensor(&numbers(seed, k * dim), k, dim, DType::F32).unwrap();
        be.run(OrthonormalizeRows { matrices: vec![rows.mat_mut()] }).unwrap();
        let directions = be.download(rows.mat()).unwrap();
        Spectrum { name: name.into(), dim, directions, values: vec![1.0; k], rest: 0.0, samples: 100 }
    };
    let ((m0, n0), (m1, n1)) = (SHAPES[0], SHAPES[1]);
    let outputs = [spectrum("s", m0, 70), spectrum("s", m1, 71)].map(Some).to_vec();
    Knowledge {
        fingerprint: "f".into(),
        tokens: 10,
        gradient_tokens: 5,
        inputs: vec![spectrum("s", n0, 70), spectrum("s", n1, 71)],
        input_of_site: vec![Some(0), Some(1)],
        outputs: if side == NullSide::Output { outputs.clone() } else { Vec::new() },
        gradients: outputs,
        hidden: Some(spectrum("final", 7, 72)),
    }
}

/// Second moments of the two layers' inputs and output gradients, decaying; `known`: of so many directions (of all, where
/// there are fewer), the others alike.
fn moments(known: usize) -> Knowledge {
    let be = backend();
    let spectrum = |name: &str, dim: usize, seed: u64| {
        let k = known.min(dim);
        let mut rows = be.tensor(&numbers(seed, dim * dim), dim, dim, DType::F32).unwrap();
        be.run(OrthonormalizeRows { matrices: vec![rows.mat_mut()] }).unwrap();
        let directions = be.download(rows.mat().row_range(0..k)).unwrap();
        let values: Vec<f64> = (0..dim).map(|j| 0.3 * 0.7f64.powi(j as i32) + 1e-3).collect();
        let rest = values[k..].iter().sum::<f64>() / (dim - k).max(1) as f64;
        Spectrum { name: name.into(), dim, directions, values: values[..k].to_vec(), rest, samples: 99 }
    };
    let [(m0, n0), (m1, n1)] = SHAPES;
    Knowledge {
        inputs: vec![spectrum("input 0", n0, 80), spectrum("input 1", n1, 81)],
        input_of_site: vec![Some(0), Some(1)],
        gradients: vec![Some(spectrum("output 0", m0, 82)), Some(spectrum("output 1", m1, 83))],
        ..Default::default()
    }
}

/// The second moment as it is kept, in f64, with `f` of its eigenvalues.
fn matrix_of(s: &Spectrum, f: impl Fn(f64) -> f64) -> Vec<f64> {
    let (n, rest) = (s.dim, f(s.rest));
    let mut all: Vec<f64> = (0..n * n).map(|e| if e / n == e % n { rest } else { 0.0 }).collect();
    for (row, value) in s.directions.chunks(n).zip(&s.values) {
        let weight = f(*value) - rest;
        all.iter_mut()
            .enumerate()
            .for_each(|(e, to)| *to += weight * f64::from(row[e / n]) * f64::from(row[e % n]));
    }
    all
}

/// `a [m x k] b [k x n]` in f64.
fn times(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let (m, n) = (a.len() / k, b.len() / k);
    let at = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|e| at(e / n, e % n)).collect()
}

fn transposed(m: &[f64], cols: usize) -> Vec<f64> {
    let rows = m.len() / cols;
    (0..m.len()).map(|e| m[(e % rows) * cols + e / rows]).collect()
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

fn small(method: Method) -> MethodSettings {
    MethodSettings {
        gems: GemsSettings {
            method,
            rank: 3,
            task_rank: Some(2),
            refresh_every: 4,
            refresh_window: 2,
            ..Default::default()
        },
        ..MethodSettings::plain()
    }
}

fn bases_of(world: &World, site: usize) -> (Vec<f32>, usize, usize) {
    let a = &world.layers[site].branch.as_ref().unwrap().a;
    (world.be.download(a.mat()).unwrap(), a.rows(), a.cols())
}
