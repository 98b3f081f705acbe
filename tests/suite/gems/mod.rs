//! The method against the published optimizer's recorded trajectories, PEFT, torch, f64 formulas and its own
//! invariants.

mod gates;
mod null_space;
mod optimizer;
mod published;
mod refresh;
mod resume;
mod step;

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
        let be = backend();
        let layers = SHAPES
            .iter()
            .enumerate()
            .map(|(i, (m, n))| AdaptedLinear {
                weight: be.tensor(&numbers(i as u64, m * n), *m, *n, DType::F32).unwrap(),
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

    fn tuner(&mut self, settings: MethodSettings, knowledge: Option<&KnowledgeBasis>) -> Optimizer {
        let be = Arc::clone(&self.be);
        let shapes = self.shapes.clone();
        let roles = [Some(DenseRole::Rows { first_row: 4 })];
        let mut tuner = Optimizer::new(settings, &shapes, &roles, 2, knowledge, self, &be, 7).unwrap();
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

    fn step(&mut self, tuner: &mut Optimizer, step: u64, rows: [usize; 2]) -> StepReport {
        tuner.begin_step().unwrap();
        self.observe(tuner, step, rows);
        observe_losses(tuner, &self.be, &[1.0, 2.0]);
        let counts = rows.iter().map(|r| *r as f64).collect();
        let input = StepInput { labels: vec![1; 2], counts, lr: 0.01, lr_rows: 0.02, ..Default::default() };
        tuner.step(self, &input).unwrap()
    }

    /// W + B A of a layer.
    fn effective(&self, site: usize) -> Vec<f32> {
        let layer = &self.layers[site];
        let mut w = self.be.duplicate(layer.weight.mat(), DType::F32).unwrap();
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

fn knowledge(side: NullSide, k: usize) -> KnowledgeBasis {
    let be = backend();
    let space = |dim: usize, seed: u64| {
        let mut rows = be.tensor(&numbers(seed, k * dim), k, dim, DType::F32).unwrap();
        be.run(OrthonormalizeRows { matrices: vec![rows.mat_mut()] }).unwrap();
        let directions = be.download(rows.mat()).unwrap();
        Space { name: "s".into(), dim, directions, spectrum: vec![1.0; dim], energy: 0.9 }
    };
    let dims = SHAPES.map(|(m, n)| if side == NullSide::Input { n } else { m });
    KnowledgeBasis {
        fingerprint: "f".into(),
        side,
        rule: "r".into(),
        of_site: vec![Some(0), Some(1)],
        spaces: vec![space(dims[0], 70), space(dims[1], 71)],
        final_hidden: Some(Space { name: "final".into(), ..space(7, 72) }),
        tokens: 10,
    }
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
        null_space: NullSpaceSettings { side: NullSide::None, item_rows: 0.0, ..Default::default() },
        ..Default::default()
    }
}

fn bases_of(world: &World, site: usize) -> (Vec<f32>, usize, usize) {
    let a = &world.layers[site].branch.as_ref().unwrap().a;
    (world.be.download(a.mat()).unwrap(), a.rows(), a.cols())
}
