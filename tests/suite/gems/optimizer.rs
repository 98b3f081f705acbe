//! Schedules, clipping and AdamW against torch, LoRA's training against PEFT.

use super::{floats, published_optimizer};
use crate::model::{Rows, load};
use crate::support::{FactorCase, Golden, Reference, assert_close, assert_within, backend, on_every_device};
use gems_engine::backend::*;
use gems_engine::gems::*;
use gems_engine::layers::Site;
use gems_engine::train::{Schedule, micro_step};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[test]
fn golden_schedules() {
    for case in Golden::open().json("optim/schedules.json").as_array().unwrap() {
        let shape = match case["kind"].as_str().unwrap() {
            "cosine" => Schedule::Cosine,
            "linear" => Schedule::Linear,
            _ => Schedule::Constant,
        };
        let (warmup, total) = (case["warmup"].as_u64().unwrap_or(0), case["total"].as_u64().unwrap_or(1));
        let base = case["base_lr"].as_f64().unwrap();
        for (i, want) in floats(&case["lr_used_at_step"]).iter().enumerate() {
            let got = base * shape.factor(i as u64, warmup, total, 0.0);
            assert!((got - want).abs() <= 1e-9 * want.abs().max(1e-9), "{case:?} step {i}: {got} not {want}");
        }
    }
}

#[test]
fn golden_clipping() {
    on_every_device(|| {
        for case in Golden::open().json("optim/clip.json").as_array().unwrap() {
            let (most, norm) = (case["max_norm"].as_f64().unwrap(), case["total_norm"].as_f64().unwrap());
            let want = case["coefficient"].as_f64().unwrap();
            let step = FactorCase {
                products: vec![(GramEntry::Whole, norm * norm)],
                clip_norm: most,
                ..FactorCase::of(&[1.0], &[1.0])
            };
            let got = f64::from(step.factors(&backend(), GateRule::Fixed(1.0))[0]);
            assert!((got - want).abs() < 1e-6, "{case}");
        }
    });
}

#[test]
fn golden_adamw() {
    on_every_device(|| {
        let golden = Golden::open();
        let be = backend();
        let t = golden.tensors("optim/adamw.safetensors");
        for (name, case) in golden.json("optim/adamw.json").as_object().unwrap() {
            let published = !name.starts_with("torch");
            let o = OptimizerSettings {
                eps_before_correction: published,
                decay: Decay::Weights,
                ..published_optimizer(case)
            };
            let letters: Vec<String> =
                t.keys().filter_map(|k| k.strip_prefix("W0.").map(String::from)).collect();
            let file = "optim/adamw.safetensors";
            let (rtol, atol) = (golden.tolerance(file, "rtol", 1e-5), golden.tolerance(file, "atol", 1e-6));
            let steps = t.keys().filter(|k| k.starts_with(&format!("{name}.a.step"))).count() as u64;
            assert!(steps > 0, "{name}");
            let mut state: BTreeMap<&String, [Tensor; 3]> = letters
                .iter()
                .map(|l| {
                    let w = &t[&format!("W0.{l}")];
                    let zeros = || be.zeros(w.rows(), w.cols(), DType::F32).unwrap();
                    let start = be.tensor(&w.values, w.rows(), w.cols(), DType::F32).unwrap();
                    (l, [start, zeros(), zeros()])
                })
                .collect();
            for step in 1..=steps {
                let gradient = |l: &String| &t[&format!("grad.{l}.step{step}")];
                let norm = letters
                    .iter()
                    .flat_map(|l| &gradient(l).values)
                    .map(|v| (*v as f64).powi(2))
                    .sum::<f64>()
                    .sqrt();
                // torch.nn.utils.clip_grad_norm_
                let clip = case["clip_max_norm"].as_f64().map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0));
                let lr = case["lr_used"][step as usize - 1].as_f64().unwrap_or(case["lr"].as_f64().unwrap());
                for l in &letters {
                    let g = gradient(l);
                    let g = be.tensor(&g.values, g.rows(), g.cols(), DType::F32).unwrap();
                    let [x, m, v] = state.get_mut(l).unwrap();
                    let block = AdamBlock { grad_scale: clip as f32, ..adamw(&o, 0..x.cols(), step, lr) };
                    let (x_mut, m, v) = (x.mat_mut(), m.mat_mut(), v.mat_mut());
                    let (blocks, copy, change) = (vec![block], None, None);
                    let update = AdamUpdate { x: x_mut, g: g.mat(), held: None, m, v, blocks, copy, change };
                    be.run(Adam { updates: vec![update], factors: None, squares: None }).unwrap();
                    let want = &t[&format!("{name}.{l}.step{step}")];
                    let got = be.download(x.mat()).unwrap();
                    assert_close(&format!("{name}.{l}.step{step}"), &got, &want.values, rtol, atol);
                }
            }
        }
    });
}

/// How far Adam's step `t`, `m̂ / (√v̂ + eps)`, may be from that of gradients which are up to `error` away from these;
/// `root` is `√v̂`.
///
/// The step's derivative by an earlier gradient g is `w / (√v̂ + eps) - m̂ y g / (√v̂ (√v̂ + eps)²)`, with the weights w
/// and y of g in m̂ and v̂. Over all gradients so far that adds up to `(1 + |step|) / (√v̂ + eps)` at most (Cauchy and
/// Schwarz), and a step is about 1 long. In the first step, `g / (|g| + eps)`, all but the sign cancels: its derivative
/// is `eps / (|g| + eps)²`. A gradient no larger than its error may have either sign: then the step is 2 off at most.
fn step_error(t: usize, root: f64, error: f64, eps: f64) -> f64 {
    let least = (root - error).max(0.0) + eps;
    let slope = if t == 1 { eps / least.powi(2) } else { 2.0 / least };
    (slope * error).min(2.0)
}

/// PEFT's run of AdamW on a LoRA adapter.
struct LoraRun {
    golden: Golden,
    name: String,
    case: Value,
    outputs: BTreeMap<String, Reference>,
}

/// A trained factor, A or B of a layer.
struct Factor {
    /// Its name in a checkpoint, that of its second moments, and its name in PEFT's files.
    ours: String,
    moments: String,
    peft: String,
    start: Reference,
    /// How far each of its elements may be from PEFT's at the end.
    tolerance: Vec<f64>,
}

impl LoraRun {
    fn open(name: String) -> Option<Self> {
        let golden = Golden::open();
        let case = golden.json(&format!("lora/{name}/case.json"));
        let outputs = golden.tensors(&format!("lora/{name}/outputs.safetensors"));
        let run = Self { golden, name, case, outputs };
        run.golden.has(&run.path("trained_adapter.safetensors")).then_some(run)
    }

    fn path(&self, file: &str) -> String {
        format!("lora/{}/{file}", self.name)
    }

    fn settings(&self) -> MethodSettings {
        let (rank, training) = (self.case["r"].as_u64().unwrap() as usize, &self.case["training"]);
        MethodSettings {
            gems: GemsSettings {
                method: Method::Lora,
                rank,
                lora_alpha: Some(self.case["scaling"].as_f64().unwrap() * rank as f64),
                ..Default::default()
            },
            null_space: NullSpaceSettings::off(),
            rehearsal: RehearsalSettings::off(),
            optimizer: OptimizerSettings {
                weight_decay: training["weight_decay"].as_f64().unwrap(),
                eps: training["eps"].as_f64().unwrap(),
                embeddings: Embeddings::None,
                ..Default::default()
            },
        }
    }

    /// The tolerance where gradients are well above their rounding.
    fn atol(&self) -> f64 {
        self.golden.tolerance(&self.path("trained_adapter.safetensors"), "atol", 5e-5)
    }

    fn factors(&self, sites: &[Site]) -> Vec<Factor> {
        let start = self.golden.tensors(&self.path("adapter/adapter_model.safetensors"));
        let of_site = |(i, site): (usize, &Site)| {
            [("a", "A"), ("b", "B")].map(|(letter, peft)| {
                let peft = format!("base_model.model.{}.lora_{peft}.weight", site.name);
                let (ours, moments) = (format!("site.{i}.{letter}"), format!("site.{i}.v.{letter}"));
                let start = start[&peft].clone();
                let tolerance = vec![self.atol(); start.values.len()];
                Factor { ours, moments, peft, start, tolerance }
            })
        };
        sites.iter().enumerate().flat_map(of_site).collect()
    }

    /// How far two engines' gradients of a factor may be apart. Each is off by the stated error, which is that of the
    /// largest gradient of all: rounding is in proportion to what is added up.
    fn error(&self, gradient: &Reference) -> f64 {
        let largest = |r: &Reference| r.values.iter().fold(0.0, |most, v| f64::max(most, v.abs().into()));
        let gradients = self.outputs.iter().filter(|(name, _)| name.starts_with("grad_"));
        let all = gradients.map(|(_, r)| largest(r)).fold(0.0, f64::max);
        2.0 * self.case["float64_max_abs_diff"]["grads"].as_f64().unwrap() * largest(gradient) / all
    }

    /// Adds what step `t` may differ by to the factors' tolerances. The first step's gradient is PEFT's. Later ones were
    /// not recorded: their √v̂ is ours, but no less than the first gradient alone makes it.
    fn widen(&self, factors: &mut [Factor], state: &[StateTensor], t: usize) {
        let (o, lr) = (self.settings().optimizer, self.case["training"]["lr"].as_f64().unwrap());
        let correction = 1.0 - o.beta2.powi(t as i32);
        let share = (1.0 - o.beta2) * o.beta2.powi(t as i32 - 1) / correction;
        for factor in factors {
            let first = &self.outputs[&format!("grad_whole.{}", factor.peft)];
            let error = self.error(first);
            let moments = &state.iter().find(|s| s.name == factor.moments).unwrap().values;
            for ((tolerance, g), v) in factor.tolerance.iter_mut().zip(&first.values).zip(moments) {
                let least = share.sqrt() * f64::from(g.abs());
                let root = if t == 1 { least } else { least.max((f64::from(*v) / correction).sqrt()) };
                *tolerance += lr * step_error(t, root, error, o.eps);
            }
        }
    }
}

fn lora_training(run: &LoraRun) {
    let training = &run.case["training"];
    let mut model = load(&run.golden, run.case["model"].as_str().unwrap(), "config.json");
    let sites = model.layout.sites.clone();
    let mut tuner = Optimizer::for_model(run.settings(), &mut model, None, 2, None, 0).unwrap();
    let mut factors = run.factors(&sites);
    let start = |f: &Factor| {
        let (name, values) = (f.ours.clone(), f.start.values.clone());
        StateTensor { name, kind: StateKind::Weight, rows: f.start.rows(), cols: f.start.cols(), values }
    };
    let start: Vec<StateTensor> = factors.iter().map(start).collect();
    tuner.restore(&mut model, &start, &json!({"step": 0, "task_steps": [0, 0]})).unwrap();
    let (batch, _) = Rows::read(&run.outputs, "batch.").batch_of(&model.architecture, 2, |_| true, true);
    let labels = batch.labels.per_task();
    let lr = training["lr"].as_f64().unwrap();
    let mut state = start;
    for (step, want) in floats(&training["losses"]).into_iter().enumerate() {
        tuner.begin_step().unwrap();
        let nll = micro_step(&model, &mut tuner, &batch, Scales::of(&labels), false).unwrap();
        let nll = model.backend.download(nll.mat()).unwrap();
        let loss = nll.iter().map(|v| *v as f64).sum::<f64>() / nll.len() as f64;
        assert!((loss - want).abs() < 1e-4 * want, "{}: {loss} not {want}", run.name);
        let (counts, labels) = (vec![1.0; 2], labels.clone());
        let input = StepInput { labels, counts, lr, lr_rows: lr, ..Default::default() };
        assert!(tuner.step(&mut model, &input).unwrap().finite);
        (state, _) = tuner.state(&mut model).unwrap();
        run.widen(&mut factors, &state, step + 1);
    }
    let trained = run.golden.tensors(&run.path("trained_adapter.safetensors"));
    let (mut wide, mut all) = (0, 0);
    for f in &factors {
        let got = state.iter().find(|s| s.name == f.ours).unwrap();
        assert_within(&f.peft, &got.values, &trained[&f.peft].values, |i| f.tolerance[i]);
        wide += f.tolerance.iter().filter(|t| **t > 2.0 * run.atol()).count();
        all += f.tolerance.len();
    }
    assert!(wide * 50 < all, "{}: {wide} of {all} tolerances are wide", run.name);
}

#[test]
fn golden_lora_training() {
    on_every_device(|| {
        for run in Golden::open().folders("lora").into_iter().filter_map(LoraRun::open) {
            lora_training(&run);
        }
    });
}
