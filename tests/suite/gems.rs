//! The method against the published optimizer's recorded trajectories, PEFT, torch, f64 formulas and its own
//! invariants.

use crate::model::{Rows, load};
use crate::support::{Golden, Reference, assert_close, backend, numbers, on_every_device};
use gems_engine::backend::cuda::Cuda;
use gems_engine::backend::{
    AdamBlock, AdamUpdate, AdaptedLinear, Backend, Branch, DType, MatMut, Op, OuterPart, Tensor,
};
use gems_engine::gems::*;
use gems_engine::train::{dense_roles, labels_per_task, micro_step, scales, site_shapes};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

// ---- golden: the published optimizer ----------------------------------------------------------

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

/// The protected directions of a projector P = I - K Kᵀ, as rows.
fn protected_of(p: &Reference) -> Vec<f32> {
    let n = p.cols();
    let rest: Vec<f32> =
        p.values.iter().enumerate().map(|(i, v)| if i / n == i % n { 1.0 - v } else { -v }).collect();
    let (values, vectors) = symmetric_eigen(&rest, n).unwrap();
    let k = values.iter().filter(|v| **v > 0.5).count();
    vectors[..k * n].to_vec()
}

fn matrix_case(golden: &Golden, path: &str, injected: bool) {
    let be = backend();
    let case = golden.json(path);
    let stem = path.trim_end_matches(".json");
    let shape_name = stem.rsplit('/').next().unwrap().split('_').next().unwrap();
    let want = golden.tensors(&format!("{stem}.safetensors"));
    let inputs = golden.tensors(&format!("gems_matrix/{shape_name}_inputs.safetensors"));
    let (m, n) = (case["shape"][0].as_u64().unwrap() as usize, case["shape"][1].as_u64().unwrap() as usize);
    let tensor = |r: &Reference| be.tensor(&r.values, r.rows(), r.cols(), DType::F32).unwrap();
    let (shared, own) = (case["rank_shared"].as_u64().unwrap(), case["rank_specific"].as_u64().unwrap());
    let protected = case["projector"].as_str().map(|name| {
        let p = &inputs[name];
        let side = if name == "P_in" { NullSide::Input } else { NullSide::Output };
        let rows = protected_of(p);
        let k = rows.len() / p.cols();
        (side, be.tensor(&transpose(&rows, k, p.cols()), p.cols(), k, DType::F32).unwrap().into())
    });
    let project = if case["strict"].as_bool() == Some(true) { Project::Both } else { Project::Gradient };
    let (side, k) = match protected {
        Some((side, k)) => (side, Some(k)),
        None => (NullSide::None, None),
    };
    let ranks = [shared as usize, own as usize, own as usize];
    let every = case["update_proj_gap"].as_u64().unwrap();
    let mut matrix = PublishedMatrix::new(&be, (m, n), &ranks, every, (side, project), k).unwrap();
    let optimizer = published_optimizer(&case);
    let (lr, scale) = (case["lr"].as_f64().unwrap(), case["scale"].as_f64().unwrap());
    let absent: Vec<u64> = serde_json::from_value(case["zero_rec_gradient_steps"].clone()).unwrap();
    let mut w = tensor(&inputs["W0"]);
    let tolerance = match injected {
        true => (
            golden.tolerance(&format!("{stem}.safetensors"), "injected_bases.rtol", 1e-4),
            golden.tolerance(&format!("{stem}.safetensors"), "injected_bases.atol", 2e-5),
        ),
        false => (0.0, golden.tolerance(&format!("{stem}.safetensors"), "own_bases.W_atol", 1e-4)),
    };
    for t in 1..=case["gates"].as_array().unwrap().len() as u64 {
        let gate = &case["gates"][t as usize - 1];
        let mut gradients: Vec<Tensor> =
            ["whole", "rec", "src"].iter().map(|s| tensor(&inputs[&format!("step{t}.grad_{s}")])).collect();
        if absent.contains(&t) {
            be.fill(gradients[1].mat_mut(), 0.0).unwrap();
        }
        let bases = (injected && want.contains_key(&format!("step{t}.basis.shared"))).then(|| {
            ["shared", "rec", "src"]
                .iter()
                .map(|s| {
                    let b = &want[&format!("step{t}.basis.{s}")];
                    // Stored as rows where it is on the right, as columns where it is on the left.
                    if m >= n {
                        tensor(b)
                    } else {
                        let turned = transpose(&b.values, b.rows(), b.cols());
                        be.tensor(&turned, b.cols(), b.rows(), DType::F32).unwrap()
                    }
                })
                .collect()
        });
        let gates = [gate["rec"].as_f64().unwrap(), gate["src"].as_f64().unwrap()];
        let (rate, clip) = (lr * scale, 1.0);
        let step = PublishedStep { optimizer: &optimizer, rate, t, gates: &gates, clip, bases };
        let update = matrix.step(&mut gradients, step).unwrap();
        be.axpy(1.0, update.mat(), w.mat_mut()).unwrap();
        be.scale(w.mat_mut(), (1.0 - lr * optimizer.weight_decay) as f32).unwrap();
        let got = be.download(w.mat()).unwrap();
        assert_close(
            &format!("{stem} step {t}"),
            &got,
            &want[&format!("step{t}.W")].values,
            tolerance.0,
            tolerance.1,
        );
    }
}

#[test]
fn golden_published_matrices_with_recorded_bases() {
    on_every_device(|| {
        let golden = Golden::open();
        let cases: Vec<String> = golden.files("gems_matrix/", ".json");
        assert!(!cases.is_empty());
        for case in cases {
            matrix_case(&golden, &case, true);
        }
    });
}

#[test]
fn golden_published_matrices_with_own_bases() {
    on_every_device(|| {
        let golden = Golden::open();
        for case in golden.files("gems_matrix/", ".json") {
            let absent = golden.json(&case)["zero_rec_gradient_steps"].clone();
            // The SVD of a zero matrix is anybody's; such cases need the recorded bases.
            if absent.as_array().is_some_and(Vec::is_empty) {
                matrix_case(&golden, &case, false);
            }
        }
    });
}

fn run_settings(case: &Value) -> TunerSettings {
    TunerSettings {
        gems: GemsSettings {
            rank: case["rank_shared"].as_u64().unwrap() as usize,
            task_rank: case["rank_specific"].as_u64().map(|r| r as usize),
            scale: case["scale"].as_f64().unwrap(),
            refresh_every: case["update_proj_gap"].as_u64().unwrap(),
            side: Side::Published,
            bases: Bases::Independent,
            moments: Moments::Keep,
            gates: GateSettings { kind: GateKind::Heuristic, full_norms: true, ..Default::default() },
            ..Default::default()
        },
        null_space: NullSpaceSettings {
            side: if case["null_space"] == true { NullSide::Output } else { NullSide::None },
            project: Project::Gradient,
            item_rows: 0.0,
            ..Default::default()
        },
        optimizer: OptimizerSettings {
            embeddings: Embeddings::All,
            norms: true,
            biases: true,
            ..published_optimizer(case)
        },
    }
}

#[test]
fn golden_published_runs_end_to_end() {
    on_every_device(|| {
        let golden = Golden::open();
        let runs = golden.folders("gems_e2e");
        assert!(!runs.is_empty());
        for run in runs {
            let path = |file: &str| format!("gems_e2e/{run}/{file}");
            let case = golden.json(&path("case.json"));
            let inputs = golden.tensors(&path("inputs.safetensors"));
            let mut model = load(&golden, case["model"].as_str().unwrap(), "config.json");
            let be = Arc::clone(&model.backend);
            let sites = site_shapes(&model);
            let mut spaces = Vec::new();
            let mut of_site = Vec::new();
            for site in &sites {
                let projector = inputs.get(&format!("projector.{}", site.name));
                of_site.push(projector.map(|p| {
                    let directions = protected_of(p);
                    let (name, dim) = (site.name.clone(), p.cols());
                    spaces.push(Space { name, dim, directions, spectrum: vec![0.0; dim], energy: 1.0 });
                    spaces.len() - 1
                }));
            }
            let knowledge = KnowledgeBasis {
                fingerprint: String::new(),
                side: NullSide::Output,
                rule: String::new(),
                of_site,
                spaces,
                final_hidden: None,
                tokens: 0,
            };
            let settings = run_settings(&case);
            let roles = dense_roles(&model, &settings.optimizer, None);
            let mut tuner =
                Tuner::new(settings, &sites, &roles, 2, Some(&knowledge), &mut model, &be, 0).unwrap();
            let micro = case["gradient_accumulation"].as_u64().unwrap() as usize;
            for (index, log) in case["log"].as_array().unwrap().iter().enumerate() {
                let mut input = StepInput { labels: vec![1; 2], counts: vec![0.0; 2], ..Default::default() };
                let mut sums = vec![0.0; 2];
                input.lr = log["lr"].as_f64().unwrap();
                input.lr_rows = input.lr;
                tuner.begin_step().unwrap();
                for j in 0..micro {
                    let rows = Rows::read(&inputs, &format!("micro{}.", index * micro + j));
                    let (mut batch, _) = rows.batch_of(&model.architecture, 2, |_| true, true);
                    batch.labels.weights.iter_mut().for_each(|w| *w /= micro as f32);
                    let labels = labels_per_task([&batch], 2);
                    let nll = micro_step(&model, &mut tuner, &batch, &scales(&labels), j % 2 == 1).unwrap();
                    let nll = model.backend.download(nll.mat()).unwrap();
                    let losses = &log["micro_losses"][j];
                    let mean = |r: std::ops::Range<usize>| {
                        nll[r.clone()].iter().map(|v| *v as f64).sum::<f64>() / r.len() as f64
                    };
                    assert!(
                        (mean(0..nll.len()) - losses["whole"].as_f64().unwrap()).abs() < 2e-4,
                        "{run} step {index}"
                    );
                    for (t, range) in batch.labels.segments.iter().enumerate().filter(|(_, r)| !r.is_empty())
                    {
                        sums[t] += mean(range.clone()) as f32;
                        input.counts[t] += rows.rows.iter().filter(|r| r.2 == t).count() as f64;
                    }
                }
                observe_losses(&mut tuner, &be, &sums);
                let report = tuner.finish_step(&mut model, &input).unwrap();
                let gates = &log["gates"];
                let wanted = [gates["rec"].as_f64().unwrap() as f32, gates["src"].as_f64().unwrap() as f32];
                let got: Vec<f32> = report.gates.iter().map(|g| *g as f32).collect();
                assert_close(&format!("{run} step {index} gates"), &got, &wanted, 0.0, 2e-5);
                let norm = log["grad_norms"]["whole"].as_f64().unwrap();
                assert!(
                    (report.gradient_norm / norm - 1.0).abs() < 2e-4,
                    "{run} step {index}: {}",
                    report.gradient_norm
                );
            }
            let file = path("final.safetensors");
            let atol = golden.tolerance(&file, "own_bases.atol", 2e-4);
            for (name, want) in golden.tensors(&file) {
                if model.tensors().iter().any(|(n, _)| *n == name) {
                    assert_close(
                        &format!("{run} {name}"),
                        &model.tensor(&name).unwrap(),
                        &want.values,
                        0.0,
                        atol,
                    );
                }
            }
        }
    });
}

// ---- golden: gates, null space, schedules, AdamW, clipping, LoRA -------------------------------

fn floats(v: &Value) -> Vec<f64> {
    serde_json::from_value(v.clone()).unwrap()
}

fn narrow(v: &[f64]) -> Vec<f32> {
    v.iter().map(|x| *x as f32).collect()
}

#[test]
fn golden_gates() {
    on_every_device(|| {
        let golden = Golden::open();
        let cases = golden.json("gating/cases.json");
        let t = golden.tensors("gating/network.safetensors");
        let wide = |name: &str| t[name].values.iter().map(|v| *v as f64).collect::<Vec<f64>>();
        let layer = |i: usize| {
            let w = &t[&format!("w{i}")];
            (wide(&format!("w{i}")), wide(&format!("b{i}")), w.cols())
        };
        let mut network = GateNetwork { layers: vec![layer(1), layer(2), layer(3)], temperature: 1.0 };
        for case in cases["cases"].as_array().unwrap() {
            let signals = TaskSignals {
                losses: floats(&case["losses"]),
                norms: floats(&case["grad_norms"]),
                counts: floats(&case["sample_counts"]),
            };
            assert_close(
                "heuristic",
                &narrow(&heuristic(&signals, [0.4, 0.4, 0.2])),
                &narrow(&floats(&case["heuristic"])),
                0.0,
                1e-6,
            );
            let other = narrow(&floats(&case["heuristic_alpha06_beta03_gamma01"]));
            assert_close("heuristic 631", &narrow(&heuristic(&signals, [0.6, 0.3, 0.1])), &other, 0.0, 1e-6);
            let features = signals.features();
            assert_close("features", &narrow(&features), &narrow(&floats(&case["features"])), 0.0, 1e-6);
            for (temperature, want) in case["network"].as_object().unwrap() {
                network.temperature = temperature.parse().unwrap();
                assert_close(
                    "network",
                    &narrow(&network.gates(&features)),
                    &narrow(&floats(want)),
                    1e-5,
                    1e-6,
                );
            }
            let backward = &case["backward"];
            let Some(prefix) = backward["tensors"].as_str() else { continue };
            network.temperature = backward["temperature"].as_f64().unwrap();
            let g = network.backward(&features, &floats(&backward["upstream"]));
            for (i, (dw, db)) in g.layers.iter().enumerate() {
                for (what, got) in [("w", dw), ("b", db)] {
                    let name = prefix.replace('*', &format!("{what}{}", i + 1));
                    assert_close(&name, &narrow(got), &t[&name].values, 1e-4, 1e-6);
                }
            }
            let want = &t[&prefix.replace('*', "temperature")].values;
            assert_close("temperature", &[g.temperature as f32], want, 1e-4, 1e-6);
        }
    });
}

#[test]
fn golden_null_space() {
    on_every_device(|| {
        let golden = Golden::open();
        let be = backend();
        let cases = golden.json("nullspace/cases.json");
        for (case, facts) in cases["cases"].as_object().unwrap() {
            let file = format!("nullspace/{case}.safetensors");
            let t = golden.tensors(&file);
            for (module, sides) in facts["modules"].as_object().unwrap() {
                for side in ["input", "output"] {
                    let key = |what: &str| format!("{module}.{side}.{what}");
                    let cov = &t[&key("cov")];
                    if let Some(x) = t.get(&key("activations")) {
                        let mut moment = SecondMoment::new(&be, x.cols()).unwrap();
                        let half = x.rows() / 2 * x.cols();
                        for part in [&x.values[..half], &x.values[half..]] {
                            let rows = be.tensor(part, part.len() / x.cols(), x.cols(), DType::F32).unwrap();
                            moment.add(rows.mat()).unwrap();
                        }
                        assert_close(&key("cov"), &moment.mean().unwrap(), &cov.values, 1e-4, 1e-5);
                    }
                    let threshold = sides[side]["threshold"].as_f64().unwrap();
                    let space = Space::new("x", &cov.values, cov.cols(), (Criterion::Absolute, threshold), 0)
                        .unwrap();
                    let null = sides[side]["null_dim"].as_u64().unwrap() as usize;
                    assert_eq!(space.kept(), cov.cols() - null, "{case} {}", key("null_dim"));
                    let g = &t[&format!("{module}.G")];
                    let mut projected = be.tensor(&g.values, g.rows(), g.cols(), DType::F32).unwrap();
                    let columns = transpose(&space.directions, space.kept(), space.dim);
                    let k = be.tensor(&columns, space.dim, space.kept(), DType::F32).unwrap();
                    match side {
                        "input" => be.project_rows(projected.mat_mut(), k.mat()).unwrap(),
                        _ => be.project_columns(projected.mat_mut(), k.mat()).unwrap(),
                    }
                    let got = be.download(projected.mat()).unwrap();
                    let tolerance = golden.tolerance(&file, "projected.atol", 2e-3);
                    assert_close(&key("projected"), &got, &t[&key("projected")].values, 0.0, tolerance);
                }
            }
            if let (Some(cov), Some(p)) = (t.get("fallback.cov"), t.get("fallback.P")) {
                let space = Space::new("x", &cov.values, cov.cols(), (Criterion::Absolute, 0.02), 0).unwrap();
                let trace: f32 = (0..p.cols()).map(|i| p.values[i * p.cols() + i]).sum();
                assert_eq!(space.dim - space.kept(), trace.round() as usize, "{case} fallback");
            }
        }
    });
}

#[test]
fn golden_schedules() {
    for case in Golden::open().json("optim/schedules.json").as_array().unwrap() {
        let shape = match case["kind"].as_str().unwrap() {
            "cosine" => Shape::Cosine,
            "linear" => Shape::Linear,
            _ => Shape::Constant,
        };
        let (warmup, total) = (case["warmup"].as_u64().unwrap_or(0), case["total"].as_u64().unwrap_or(1));
        let base = case["base_lr"].as_f64().unwrap();
        for (i, want) in floats(&case["lr_used_at_step"]).iter().enumerate() {
            let got = base * factor(shape, i as u64, warmup, total, 0.0);
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
            assert!((clip_factor(norm, most) - want).abs() < 1e-6, "{case}");
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
                let clip = case["clip_max_norm"].as_f64().map_or(1.0, |most| clip_factor(norm, most));
                let lr = case["lr_used"][step as usize - 1].as_f64().unwrap_or(case["lr"].as_f64().unwrap());
                for l in &letters {
                    let g = gradient(l);
                    let g = be.tensor(&g.values, g.rows(), g.cols(), DType::F32).unwrap();
                    let [x, m, v] = state.get_mut(l).unwrap();
                    let block: AdamBlock = adamw(&o, 0..x.cols(), step, lr, clip);
                    let (x_mut, m, v) = (x.mat_mut(), m.mat_mut(), v.mat_mut());
                    let (blocks, copy, change) = (vec![block], None, None);
                    let update = AdamUpdate { x: x_mut, g: g.mat(), m, v, blocks, copy, change };
                    be.adam(vec![update], None, None).unwrap();
                    let want = &t[&format!("{name}.{l}.step{step}")];
                    let got = be.download(x.mat()).unwrap();
                    assert_close(&format!("{name}.{l}.step{step}"), &got, &want.values, 1e-5, 2e-6);
                }
            }
        }
    });
}

#[test]
fn golden_lora_training() {
    on_every_device(|| {
        let golden = Golden::open();
        for name in golden.folders("lora") {
            let path = |file: &str| format!("lora/{name}/{file}");
            if !golden.has(&path("trained_adapter.safetensors")) {
                continue;
            }
            let case = golden.json(&path("case.json"));
            let training = &case["training"];
            let mut model = load(&golden, case["model"].as_str().unwrap(), "config.json");
            let be = Arc::clone(&model.backend);
            let rank = case["r"].as_u64().unwrap() as usize;
            let settings = TunerSettings {
                gems: GemsSettings {
                    method: Method::Lora,
                    rank,
                    lora_alpha: Some(case["scaling"].as_f64().unwrap() * rank as f64),
                    ..Default::default()
                },
                null_space: NullSpaceSettings { side: NullSide::None, ..Default::default() },
                optimizer: OptimizerSettings {
                    weight_decay: training["weight_decay"].as_f64().unwrap(),
                    eps: training["eps"].as_f64().unwrap(),
                    embeddings: Embeddings::None,
                    ..Default::default()
                },
            };
            let sites = site_shapes(&model);
            let roles = dense_roles(&model, &settings.optimizer, None);
            let mut tuner = Tuner::new(settings, &sites, &roles, 2, None, &mut model, &be, 0).unwrap();
            let adapter = golden.tensors(&path("adapter/adapter_model.safetensors"));
            let tensors: Vec<StateTensor> = sites
                .iter()
                .enumerate()
                .flat_map(|(i, s)| {
                    [("a", "A"), ("b", "B")].map(|(ours, peft)| {
                        let r = &adapter[&format!("base_model.model.{}.lora_{peft}.weight", s.name)];
                        let name = format!("site.{i}.{ours}");
                        StateTensor { name, rows: r.rows(), cols: r.cols(), values: r.values.clone() }
                    })
                })
                .collect();
            tuner.restore(&mut model, &tensors, &json!({"step": 0, "task_steps": [0, 0]})).unwrap();
            let rows = Rows::read(&golden.tensors(&path("outputs.safetensors")), "batch.");
            let (batch, _) = rows.batch_of(&model.architecture, 2, |_| true, true);
            let labels = labels_per_task([&batch], 2);
            let lr = training["lr"].as_f64().unwrap();
            for want in floats(&training["losses"]) {
                tuner.begin_step().unwrap();
                let nll = micro_step(&model, &mut tuner, &batch, &scales(&labels), false).unwrap();
                let nll = model.backend.download(nll.mat()).unwrap();
                let loss = nll.iter().map(|v| *v as f64).sum::<f64>() / nll.len() as f64;
                assert!((loss - want).abs() < 1e-4 * want, "{name}: {loss} not {want}");
                let (counts, labels) = (vec![1.0; 2], labels.clone());
                let input = StepInput { labels, counts, lr, lr_rows: lr, ..Default::default() };
                assert!(tuner.finish_step(&mut model, &input).unwrap().finite);
            }
            let (state, _) = tuner.state(&mut model).unwrap();
            let file = path("trained_adapter.safetensors");
            let atol = golden.tolerance(&file, "atol", 5e-5);
            let trained = golden.tensors(&file);
            for (i, site) in sites.iter().enumerate() {
                for (ours, peft) in [("a", "A"), ("b", "B")] {
                    let got = state.iter().find(|s| s.name == format!("site.{i}.{ours}")).unwrap();
                    let key = format!("base_model.model.{}.lora_{peft}.weight", site.name);
                    assert_close(&key, &got.values, &trained[&key].values, 0.0, atol);
                }
            }
        }
    });
}

// ---- a small world of two layers with known gradients -------------------------------------------

/// Two linear layers and one table, whose gradients are random but the same at every run.
struct World {
    be: Arc<dyn Backend>,
    layers: Vec<AdaptedLinear>,
    table: Tensor,
    shapes: Vec<SiteShape>,
}

const SHAPES: [(usize, usize); 2] = [(13, 24), (30, 17)];

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
            .map(|(i, (m, n))| SiteShape {
                name: format!("layer.{i}"),
                projection: if i == 0 { "q" } else { "up" },
                outputs: *m,
                inputs: *n,
            })
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

    fn observe(&self, tuner: &mut Tuner, step: u64, task_rows: [usize; 2]) {
        let total = (task_rows[0] + task_rows[1]) as f32;
        let scales = Scales {
            tasks: task_rows.iter().map(|n| if *n > 0 { total / *n as f32 } else { 0.0 }).collect(),
        };
        let segments = [0..task_rows[0], task_rows[0]..task_rows[0] + task_rows[1]];
        for site in 0..SHAPES.len() {
            let (x, dy) = self.material(site, step, task_rows);
            let (h, z) = match &self.layers[site].branch {
                Some(branch) => {
                    let mut h = self.be.alloc(x.rows(), branch.a.rows(), DType::F32).unwrap();
                    self.be.matmul(h.mat_mut(), 0.0, 1.0, x.mat(), Op::N, branch.a.mat(), Op::T).unwrap();
                    let mut z = self.be.alloc(x.rows(), branch.a.rows(), DType::F32).unwrap();
                    self.be.matmul(z.mat_mut(), 0.0, 1.0, dy.mat(), Op::N, branch.b.mat(), Op::N).unwrap();
                    (Some(h), Some(z))
                }
                None => (None, None),
            };
            let tapped = Tapped {
                x: x.mat(),
                dy: dy.mat(),
                h: h.as_ref().map(|t| t.mat()),
                z: z.as_ref().map(|t| t.mat()),
                segments: &segments,
            };
            tuner.observe_linear(site, &tapped, &scales).unwrap();
        }
        if let Some((first, per_task)) = tuner.trains(0) {
            let blocks = if per_task { 2 } else { 1 };
            let rows = blocks * (11 - first);
            let g = self.be.tensor(&numbers(2000 + step, rows * 7), rows, 7, DType::F32).unwrap();
            tuner.observe_dense(0, g.mat(), &scales).unwrap();
        }
    }

    fn tuner(&mut self, settings: TunerSettings, knowledge: Option<&KnowledgeBasis>) -> Tuner {
        let be = Arc::clone(&self.be);
        let shapes = self.shapes.clone();
        let roles = [Some(DenseRole::Rows { first_row: 4 })];
        let mut tuner = Tuner::new(settings, &shapes, &roles, 2, knowledge, self, &be, 7).unwrap();
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

    fn step(&mut self, tuner: &mut Tuner, step: u64, rows: [usize; 2]) -> StepReport {
        tuner.begin_step().unwrap();
        self.observe(tuner, step, rows);
        observe_losses(tuner, &self.be, &[1.0, 2.0]);
        let counts = rows.iter().map(|r| *r as f64).collect();
        let input = StepInput { labels: vec![1; 2], counts, lr: 0.01, lr_rows: 0.02, ..Default::default() };
        tuner.finish_step(self, &input).unwrap()
    }

    /// W + B A of a layer.
    fn effective(&self, site: usize) -> Vec<f32> {
        let layer = &self.layers[site];
        let mut w = self.be.duplicate(layer.weight.mat(), DType::F32).unwrap();
        if let Some(Branch { a, b }) = &layer.branch {
            self.be.matmul(w.mat_mut(), 1.0, 1.0, b.mat(), Op::N, a.mat(), Op::N).unwrap();
        }
        self.be.download(w.mat()).unwrap()
    }
}

/// Tells a tuner the summed loss of every task.
fn observe_losses(tuner: &mut Tuner, be: &Arc<dyn Backend>, sums: &[f32]) {
    let losses = be.tensor(sums, sums.len(), 1, DType::F32).unwrap();
    let each: Vec<std::ops::Range<usize>> = (0..sums.len()).map(|t| t..t + 1).collect();
    tuner.observe_losses(losses.mat(), &each).unwrap();
}

impl Parameters for World {
    fn linears(&mut self) -> &mut [AdaptedLinear] {
        &mut self.layers
    }
    fn dense(&mut self, _: usize) -> MatMut<'_> {
        self.table.mat_mut()
    }
}

fn knowledge(side: NullSide, k: usize) -> KnowledgeBasis {
    let be = backend();
    let space = |dim: usize, seed: u64| {
        let mut rows = be.tensor(&numbers(seed, k * dim), k, dim, DType::F32).unwrap();
        be.orthonormalize_rows(&mut [rows.mat_mut()]).unwrap();
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

fn small(method: Method) -> TunerSettings {
    TunerSettings {
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

/// Largest entry of `dW K` (input side) or `Kᵀ dW` (output side).
fn leak(change: &[f32], (m, n): (usize, usize), space: &Space, side: NullSide) -> f32 {
    let k = space.kept();
    let mut worst = 0f32;
    for d in 0..k {
        let direction = &space.directions[d * space.dim..(d + 1) * space.dim];
        if side == NullSide::Input {
            for i in 0..m {
                let dot: f32 = (0..n).map(|j| change[i * n + j] * direction[j]).sum();
                worst = worst.max(dot.abs());
            }
        } else {
            for j in 0..n {
                let dot: f32 = (0..m).map(|i| change[i * n + j] * direction[i]).sum();
                worst = worst.max(dot.abs());
            }
        }
    }
    worst
}

#[test]
fn updates_leave_the_knowledge_space_untouched_under_every_method() {
    on_every_device(|| {
        for side in [NullSide::Input, NullSide::Output] {
            let basis = knowledge(side, 5);
            for method in [Method::Gems, Method::Galore, Method::Lora, Method::Full] {
                for refresh in [Refresh::Exact, Refresh::Sketch] {
                    let mut settings = small(method);
                    settings.gems.refresh = refresh;
                    settings.null_space.side = side;
                    settings.null_space.item_rows = 0.5;
                    let mut world = World::new();
                    let before: Vec<Vec<f32>> = (0..2).map(|s| world.effective(s)).collect();
                    let table = world.be.download(world.table.mat()).unwrap();
                    let mut tuner = world.tuner(settings, Some(&basis));
                    for step in 0..9 {
                        assert!(world.step(&mut tuner, step, [9, 6]).finite);
                    }
                    for site in 0..2 {
                        let change: Vec<f32> =
                            world.effective(site).iter().zip(&before[site]).map(|(a, b)| a - b).collect();
                        let size = change.iter().fold(0f32, |m, v| m.max(v.abs()));
                        let worst = leak(&change, SHAPES[site], &basis.spaces[site], side);
                        assert!(size > 0.01, "{side:?} {method:?}: nothing was learned ({size})");
                        assert!(
                            worst < 2e-5 * size.max(1.0),
                            "{side:?} {method:?} {refresh:?} layer {site}: {worst}"
                        );
                    }
                    let now = world.be.download(world.table.mat()).unwrap();
                    let rows: Vec<f32> = now.iter().zip(&table).map(|(a, b)| a - b).collect();
                    assert!(rows[..4 * 7].iter().all(|v| *v == 0.0), "old rows moved");
                    assert!(rows[4 * 7..].iter().any(|v| v.abs() > 0.01));
                    let space = basis.final_hidden.as_ref().unwrap();
                    assert!(
                        leak(&rows, (11, 7), space, NullSide::Input) < 2e-5,
                        "{method:?}: item rows leak"
                    );
                }
            }
        }
    });
}

#[test]
fn projecting_only_the_gradient_leaks_as_the_dossier_says() {
    let basis = knowledge(NullSide::Output, 5);
    let mut settings = small(Method::Gems);
    settings.null_space.side = NullSide::Output;
    settings.null_space.project = Project::Gradient;
    let mut world = World::new();
    let before = world.effective(0);
    let mut tuner = world.tuner(settings, Some(&basis));
    for step in 0..5 {
        world.step(&mut tuner, step, [9, 6]);
    }
    let change: Vec<f32> = world.effective(0).iter().zip(&before).map(|(a, b)| a - b).collect();
    assert!(leak(&change, SHAPES[0], &basis.spaces[0], NullSide::Output) > 1e-3);
}

fn bases_of(world: &World, site: usize) -> (Vec<f32>, usize, usize) {
    let a = &world.layers[site].branch.as_ref().unwrap().a;
    (world.be.download(a.mat()).unwrap(), a.rows(), a.cols())
}

#[test]
fn complementary_bases_are_orthonormal_and_independent_ones_are_so_each() {
    on_every_device(|| {
        for refresh in [Refresh::Exact, Refresh::Sketch] {
            for bases in [Bases::Complementary, Bases::Independent] {
                let mut settings = small(Method::Gems);
                settings.gems.bases = bases;
                settings.gems.refresh = refresh;
                let mut world = World::new();
                let mut tuner = world.tuner(settings, None);
                for step in 0..9 {
                    world.step(&mut tuner, step, [9, 6]);
                }
                for site in 0..2 {
                    let (a, r, n) = bases_of(&world, site);
                    let blocks: Vec<std::ops::Range<usize>> =
                        if bases == Bases::Complementary { vec![0..r] } else { vec![0..3, 3..5, 5..7] };
                    for block in blocks {
                        for i in block.clone() {
                            for j in block.clone() {
                                let dot: f32 = (0..n).map(|c| a[i * n + c] * a[j * n + c]).sum();
                                let want = if i == j { 1.0 } else { 0.0 };
                                assert!((dot - want).abs() < 1e-5, "{bases:?} {refresh:?} {i} {j}: {dot}");
                            }
                        }
                    }
                }
            }
        }
    });
}

/// One step of GEMS from full gradients in f64, given the basis.
fn first_update(world: &World, site: usize, step: u64, rows: [usize; 2], lr: f64, gate: f64) -> Vec<f32> {
    let (m, n) = SHAPES[site];
    let (a, r, _) = bases_of(world, site);
    let (x, dy) = world.material(site, step, rows);
    let (x, dy) = (world.be.download(x.mat()).unwrap(), world.be.download(dy.mat()).unwrap());
    let gradient = |range: std::ops::Range<usize>, scale: f64| -> Vec<f64> {
        let mut g = vec![0.0; m * n];
        for t in range {
            for i in 0..m {
                for j in 0..n {
                    g[i * n + j] += scale * dy[t * m + i] as f64 * x[t * n + j] as f64;
                }
            }
        }
        g
    };
    let total = (rows[0] + rows[1]) as f64;
    let streams = [
        (0..3, gradient(0..rows[0] + rows[1], 1.0), 1.0),
        (3..5, gradient(0..rows[0], total / rows[0] as f64), gate),
        (5..7, gradient(rows[0]..rows[0] + rows[1], total / rows[1] as f64), gate),
    ];
    assert_eq!(r, 7);
    let mut update = vec![0.0f64; m * n];
    for (columns, g, gate) in streams {
        for i in 0..m {
            for c in columns.clone() {
                let coordinate: f64 = (0..n).map(|j| g[i * n + j] * a[c * n + j] as f64).sum();
                // First step: m̂ = g, v̂ = g².
                let direction = coordinate / (coordinate.abs() + 1e-8);
                for j in 0..n {
                    update[i * n + j] -= lr * gate * direction * a[c * n + j] as f64;
                }
            }
        }
    }
    update.iter().map(|v| *v as f32).collect()
}

#[test]
fn a_step_equals_the_three_gradients_of_the_definition() {
    on_every_device(|| {
        for bases in [Bases::Complementary, Bases::Independent] {
            let mut settings = small(Method::Gems);
            settings.gems.bases = bases;
            settings.gems.gates.fixed = 0.7;
            let mut world = World::new();
            let mut tuner = world.tuner(settings, None);
            let before: Vec<Vec<f32>> = (0..2).map(|s| world.effective(s)).collect();
            let wanted: Vec<Vec<f32>> =
                (0..2).map(|s| first_update(&world, s, 0, [9, 6], 0.01, 0.7)).collect();
            let report = world.step(&mut tuner, 0, [9, 6]);
            let mut square = 0.0;
            for site in 0..2 {
                let got: Vec<f32> =
                    world.effective(site).iter().zip(&before[site]).map(|(a, b)| a - b).collect();
                assert_close("update", &got, &wanted[site], 1e-4, 3e-6);
                square += wanted[site].iter().map(|v| (*v as f64).powi(2)).sum::<f64>();
            }
            assert!(
                (report.update_norm / square.sqrt() - 1.0).abs() < 1e-4,
                "{bases:?} {}",
                report.update_norm
            );
        }
    });
}

#[test]
fn sketches_find_nearly_the_best_basis() {
    on_every_device(|| {
        // A gradient with a decaying spectrum, as real ones have: energies kept by sketch and by SVD side by side.
        let kept = |refresh: Refresh| -> Vec<f64> {
            let mut settings = small(Method::Gems);
            settings.gems.refresh = refresh;
            let mut world = World::new();
            let mut tuner = world.tuner(settings, None);
            let mut energies = Vec::new();
            for step in 0..8 {
                if let Some(refresh) = world.step(&mut tuner, step, [9, 6]).refresh {
                    energies.push(refresh.energy[0]);
                }
            }
            assert_eq!(energies.len(), 2);
            // Energies are told on the gradient itself: the sketch's bases on the exact sums.
            let (a, r, n) = bases_of(&world, 1);
            let mut sum = world.be.zeros(SHAPES[1].0, n, DType::F32).unwrap();
            for step in 6..8 {
                let (x, dy) = world.material(1, step, [9, 6]);
                world.be.outer(dy.mat(), x.mat(), &[OuterPart::whole(15, n)], sum.mat_mut()).unwrap();
            }
            let g = world.be.download(sum.mat()).unwrap();
            let (mut all, mut held) = (0.0, 0.0);
            for i in 0..SHAPES[1].0 {
                all += (0..n).map(|j| (g[i * n + j] as f64).powi(2)).sum::<f64>();
                for c in 0..3.min(r) {
                    held += (0..n).map(|j| g[i * n + j] as f64 * a[c * n + j] as f64).sum::<f64>().powi(2);
                }
            }
            vec![held / all]
        };
        let (exact, sketch) = (kept(Refresh::Exact)[0], kept(Refresh::Sketch)[0]);
        assert!(sketch <= exact + 1e-6 && sketch > 0.9 * exact, "exact {exact}, sketch {sketch}");
    });
}

#[test]
fn folding_changes_nothing_and_moments_rotate() {
    on_every_device(|| {
        let mut world = World::new();
        let mut tuner = world.tuner(small(Method::Gems), None);
        for step in 0..3 {
            world.step(&mut tuner, step, [9, 6]);
        }
        // Step 4 refreshes: with learning rate 0 only the fold and the new bases happen.
        let before: Vec<Vec<f32>> = (0..2).map(|s| world.effective(s)).collect();
        tuner.begin_step().unwrap();
        world.observe(&mut tuner, 3, [9, 6]);
        let input = StepInput { labels: vec![1; 2], counts: vec![1.0; 2], ..Default::default() };
        let report = tuner.finish_step(&mut world, &input).unwrap();
        assert!(report.refresh.is_some());
        for (site, before) in before.iter().enumerate() {
            assert_close("fold", &world.effective(site), before, 1e-5, 1e-6);
            let b = &world.layers[site].branch.as_ref().unwrap().b;
            assert!(world.be.download(b.mat()).unwrap().iter().all(|v| *v == 0.0));
        }
    });
}

#[test]
fn an_absent_task_is_left_alone() {
    on_every_device(|| {
        let mut world = World::new();
        let mut tuner = world.tuner(small(Method::Gems), None);
        for step in 0..2 {
            world.step(&mut tuner, step, [9, 6]);
        }
        let b = |world: &World| world.be.download(world.layers[0].branch.as_ref().unwrap().b.mat()).unwrap();
        let before = b(&world);
        let report = world.step(&mut tuner, 2, [9, 0]);
        assert!(report.finite);
        let after = b(&world);
        for (i, (x, y)) in before.iter().zip(&after).enumerate() {
            assert_eq!(i % 7 >= 5, x == y, "column {}", i % 7);
        }
        // Absent in the whole window: its basis stays, turned out of the new ones' way.
        for step in 3..8 {
            world.step(&mut tuner, step, [9, 0]);
        }
        let (a, r, n) = bases_of(&world, 0);
        for i in 0..r {
            let norm: f32 = (0..n).map(|c| a[i * n + c].powi(2)).sum();
            assert!((norm - 1.0).abs() < 1e-4, "row {i}: {norm}");
        }
    });
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    for method in [Method::Gems, Method::Lora, Method::Full] {
        let mut world = World::new();
        let mut tuner = world.tuner(small(method), None);
        world.step(&mut tuner, 0, [9, 6]);
        let before = (world.effective(0), tuner.state(&mut world).unwrap());
        tuner.begin_step().unwrap();
        world.observe(&mut tuner, 1, [9, 6]);
        observe_losses(&mut tuner, &world.be, &[1.0, f32::NAN]);
        let input = StepInput {
            labels: vec![1; 2],
            counts: vec![1.0; 2],
            lr: 1.0,
            lr_rows: 1.0,
            ..Default::default()
        };
        assert!(!tuner.finish_step(&mut world, &input).unwrap().finite);
        assert_eq!(before.0, world.effective(0));
        assert_eq!(before.1, tuner.state(&mut world).unwrap(), "{method:?}");
    }
}

#[test]
fn resuming_equals_going_on_at_every_step() {
    on_every_device(|| {
        for (method, refresh, kind) in [
            (Method::Gems, Refresh::Exact, GateKind::Learned),
            (Method::Gems, Refresh::Sketch, GateKind::Heuristic),
            (Method::Galore, Refresh::Sketch, GateKind::Fixed),
            (Method::Lora, Refresh::Auto, GateKind::Fixed),
            (Method::Full, Refresh::Auto, GateKind::Fixed),
        ] {
            let settings = || {
                let mut s = small(method);
                s.gems.refresh = refresh;
                s.gems.gates.kind = kind;
                s
            };
            for stop in 1..7 {
                let mut world = World::new();
                let mut tuner = world.tuner(settings(), None);
                for step in 0..stop {
                    world.step(&mut tuner, step, [9, 6]);
                }
                let (tensors, numbers) = tuner.state(&mut world).unwrap();
                let numbers: Value = serde_json::from_str(&numbers.to_string()).unwrap();
                for step in stop..10 {
                    world.step(&mut tuner, step, [9, 6]);
                }
                let mut other = World::new();
                let be = Arc::clone(&other.be);
                let shapes = other.shapes.clone();
                let roles = [Some(DenseRole::Rows { first_row: 4 })];
                let mut again = Tuner::new(settings(), &shapes, &roles, 2, None, &mut other, &be, 7).unwrap();
                again.restore(&mut other, &tensors, &numbers).unwrap();
                assert_eq!(again.probe_rounds(), 0);
                for step in stop..10 {
                    other.step(&mut again, step, [9, 6]);
                }
                for site in 0..2 {
                    assert_eq!(
                        world.effective(site),
                        other.effective(site),
                        "{method:?} {refresh:?} from {stop}"
                    );
                }
                assert_eq!(tuner.state(&mut world).unwrap(), again.state(&mut other).unwrap());
            }
        }
    });
}

/// A delta decays whole: also the subspace of a task that a step has no sample of, whose moments stay as they are.
#[test]
fn decay_reaches_the_subspace_of_a_task_that_a_step_lacks() {
    let mut settings = small(Method::Gems);
    (settings.optimizer.weight_decay, settings.optimizer.decay) = (0.5, Decay::Delta);
    let mut world = World::new();
    let mut tuner = world.tuner(settings, None);
    world.step(&mut tuner, 0, [9, 6]);
    // The last column is the last task's.
    let column = |tuner: &Tuner, world: &mut World, name: &str| -> Vec<f32> {
        let (state, _) = tuner.state(world).unwrap();
        let tensor = state.iter().find(|t| t.name == name).unwrap();
        tensor.values.chunks(tensor.cols).map(|row| row[tensor.cols - 1]).collect()
    };
    let names = ["site.0.b", "site.0.m", "site.0.v"];
    let before = names.map(|name| column(&tuner, &mut world, name));
    world.step(&mut tuner, 1, [9, 0]);
    let after = names.map(|name| column(&tuner, &mut world, name));
    assert!(before[0].iter().any(|b| *b != 0.0));
    let decayed: Vec<f32> = before[0].iter().map(|b| b * (1.0 - 0.01 * 0.5)).collect();
    assert_close("coordinates", &after[0], &decayed, 1e-6, 0.0);
    assert_eq!(after[1..], before[1..]);
}

#[test]
fn steps_match_a_given_norm() {
    for method in [Method::Gems, Method::Galore, Method::Full] {
        let mut world = World::new();
        let mut tuner = world.tuner(small(method), None);
        let before: Vec<Vec<f32>> = (0..2).map(|s| world.effective(s)).collect();
        tuner.begin_step().unwrap();
        world.observe(&mut tuner, 0, [9, 6]);
        let input = StepInput {
            labels: vec![1; 2],
            counts: vec![1.0; 2],
            lr: 0.01,
            target_norm: Some(0.125),
            ..Default::default()
        };
        let report = tuner.finish_step(&mut world, &input).unwrap();
        assert!((report.update_norm - 0.125).abs() < 1e-6);
        let square: f64 = (0..2)
            .flat_map(|s| world.effective(s).into_iter().zip(before[s].clone()).collect::<Vec<_>>())
            .map(|(a, b)| ((a - b) as f64).powi(2))
            .sum();
        assert!((square.sqrt() - 0.125).abs() < 1e-4, "{method:?}: {}", square.sqrt());
    }
}

#[test]
fn pcgrad_weights_equal_the_projections_they_stand_for() {
    for seed in 0..20u64 {
        let tasks = 2 + seed as usize % 3;
        let g: Vec<Vec<f64>> = (0..tasks)
            .map(|t| numbers(seed * 10 + t as u64, 5).iter().map(|v| *v as f64).collect())
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let mut want = vec![0.0; 5];
        for i in 0..tasks {
            let mut own = g[i].clone();
            for j in (0..tasks).filter(|j| *j != i) {
                let along = dot(&own, &g[j]);
                if along < 0.0 {
                    let factor = along / dot(&g[j], &g[j]);
                    own.iter_mut().zip(&g[j]).for_each(|(o, x)| *o -= factor * x);
                }
            }
            want.iter_mut().zip(own).for_each(|(w, o)| *w += o);
        }
        let gram: Vec<Vec<f64>> = g.iter().map(|a| g.iter().map(|b| dot(a, b)).collect()).collect();
        let weights = pcgrad_weights(&gram);
        let got: Vec<f64> = (0..5).map(|c| (0..tasks).map(|t| weights[t] * g[t][c]).sum()).collect();
        got.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() < 1e-12));
    }
}

#[test]
fn learned_gates_learn_which_subspace_helps() {
    // Raising task 0's gate lowers the loss, raising task 1's raises it.
    let settings = GateSettings { kind: GateKind::Learned, ..Default::default() };
    let mut gates = Gates::new(&settings, 2, 3);
    let signals = TaskSignals { losses: vec![1.0, 1.0], norms: vec![1.0, 1.0], counts: vec![1.0, 1.0] };
    let first = gates.step(&signals, None);
    assert!((first[0] - 0.5).abs() < 1e-9);
    let mut last = first;
    for _ in 0..200 {
        last = gates.step(&signals, Some(&[-1.0, 1.0]));
    }
    assert!(last[0] > 0.8, "{last:?}");
    assert!((last.iter().sum::<f64>() - 1.0).abs() < 1e-9);
}

#[test]
fn learned_gates_see_the_true_effect_of_the_last_update() {
    // On a quadratic loss the hypergradient must be the derivative of the next loss by the gate: checked through
    // its sign, on repeated gradients every subspace's update lowers the loss, so both effects are negative and
    // the gates stay finite and normalised.
    let mut settings = small(Method::Gems);
    settings.gems.gates.kind = GateKind::Learned;
    settings.gems.refresh_every = 100;
    let mut world = World::new();
    let mut tuner = world.tuner(settings, None);
    for _ in 0..20 {
        let report = world.step(&mut tuner, 0, [9, 6]);
        assert!(report.finite && (report.gates.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn protected_counts_follow_their_criteria() {
    let values = [8.0, 4.0, 2.0, 1.0, 1.0];
    assert_eq!(protected(&values, Criterion::Energy, 0.5, 0), 1);
    assert_eq!(protected(&values, Criterion::Energy, 0.51, 0), 2);
    assert_eq!(protected(&values, Criterion::Energy, 1.0, 0), 5);
    assert_eq!(protected(&values, Criterion::Energy, 1.0, 2), 3);
    assert_eq!(protected(&values, Criterion::Ratio, 0.2, 0), 3);
    assert_eq!(protected(&values, Criterion::Budget, 2.0, 0), 3);
    assert_eq!(protected(&values, Criterion::Absolute, 1.5, 0), 3);
    assert_eq!(protected(&values, Criterion::Absolute, 0.5, 0), 4);
    assert_eq!(protected(&[], Criterion::Energy, 0.9, 0), 0);
}

#[test]
fn a_basis_is_saved_read_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("basis.safetensors");
    let basis = knowledge(NullSide::Input, 3);
    basis.save(&path).unwrap();
    assert_eq!(KnowledgeBasis::load(&path, "f").unwrap(), basis);
    let refused = KnowledgeBasis::load(&path, "another").unwrap_err().to_string();
    assert!(refused.contains("another model"), "{refused}");
    std::fs::write(&path, b"nonsense").unwrap();
    assert!(KnowledgeBasis::load(&path, "f").is_err());
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let mut too_large = small(Method::Gems);
    too_large.gems.rank = 12;
    too_large.gems.task_rank = Some(9);
    let mut world = World::new();
    let be = Arc::clone(&world.be);
    let shapes = world.shapes.clone();
    let refused =
        Tuner::new(too_large, &shapes, &[None], 2, None, &mut world, &be, 0).err().unwrap().to_string();
    assert!(refused.contains("layer.0") && refused.contains("gems.rank"), "{refused}");
    let mut unknown = small(Method::Gems);
    unknown.gems.targets = vec!["query".into()];
    let refused =
        Tuner::new(unknown, &shapes, &[None], 2, None, &mut world, &be, 0).err().unwrap().to_string();
    assert!(refused.contains("query"), "{refused}");
    let mut decays = small(Method::Gems);
    decays.optimizer.decay = Decay::Weights;
    decays.optimizer.weight_decay = 0.1;
    assert!(decays.validate().is_err());
    let mut nothing = small(Method::Gems);
    nothing.gems.rank = 0;
    assert!(nothing.validate().is_err());
}

/// So many layers of one shape on a device that counts and computes nothing.
struct Counted {
    be: Arc<dyn Backend>,
    layers: Vec<AdaptedLinear>,
    shapes: Vec<SiteShape>,
}

impl Parameters for Counted {
    fn linears(&mut self) -> &mut [AdaptedLinear] {
        &mut self.layers
    }
    fn dense(&mut self, _: usize) -> MatMut<'_> {
        unreachable!("no dense parameter is trained")
    }
}

impl Counted {
    fn new(layers: usize, (m, n): (usize, usize)) -> Self {
        let be = Cuda::open_null(DType::BF16);
        let layer =
            |_| AdaptedLinear { weight: be.alloc(m, n, DType::BF16).unwrap(), bias: None, branch: None };
        let shape = |i| SiteShape { name: format!("layer.{i}"), projection: "q", outputs: m, inputs: n };
        let layers: Vec<AdaptedLinear> = (0..layers).map(layer).collect();
        Self { shapes: (0..layers.len()).map(shape).collect(), be, layers }
    }

    fn observe(&self, tuner: &mut Tuner) {
        let of = |cols| self.be.alloc(6, cols, DType::BF16).unwrap();
        let scales = Scales { tasks: vec![2.0, 2.0] };
        for (site, layer) in self.layers.iter().enumerate() {
            let (m, n) = layer.weight.shape();
            let rank = layer.branch.as_ref().map_or(0, |b| b.a.rows());
            let (x, dy, h, z) = (of(n), of(m), of(rank), of(rank));
            let (h, z) = (Some(h.mat()), Some(z.mat()));
            let tapped = Tapped { x: x.mat(), dy: dy.mat(), h, z, segments: &[0..3, 3..6] };
            tuner.observe_linear(site, &tapped, &scales).unwrap();
        }
    }

    /// Waits of each opening of a probe's window, of the first bases, of opening the window of a refresh, and of the
    /// refresh beside the step's own.
    fn waits(mut self, exact: bool) -> Vec<u64> {
        let mut settings = small(Method::Gems);
        settings.gems.refresh = if exact { Refresh::Exact } else { Refresh::Sketch };
        settings.gems.refresh_window = 1;
        let (be, shapes) = (Arc::clone(&self.be), self.shapes.clone());
        let mut tuner = Tuner::new(settings, &shapes, &[], 2, None, &mut self, &be, 7).unwrap();
        let mut seen = be.waits();
        let mut since = || be.waits() - std::mem::replace(&mut seen, be.waits());
        let mut counts = Vec::new();
        for round in 0..tuner.probe_rounds() {
            tuner.begin_probe(round).unwrap();
            counts.push(since());
            self.observe(&mut tuner);
        }
        tuner.finish_probe(&mut self).unwrap();
        counts.push(since());
        let input = StepInput { labels: vec![1; 2], counts: vec![3.0; 2], ..Default::default() };
        let mut step = 0;
        for _ in 0..4 {
            tuner.begin_step().unwrap();
            counts.push(since());
            self.observe(&mut tuner);
            let report = tuner.finish_step(&mut self, &input).unwrap();
            match report.refresh {
                None => {
                    step = since();
                    assert_eq!(step, 1, "an ordinary step waits once, at its end");
                }
                Some(_) => counts.push(since() - step),
            }
        }
        counts
    }
}

/// First bases from sketches: no wait for the first probes and for the orthonormal rows of sketches, one for scaling
/// coordinates; a refresh one a subspace (3) for its small eigenproblems and one for energies; its window one. However
/// many layers there are, and as few where gradients are decomposed as they are.
#[test]
fn a_refresh_waits_as_often_for_many_layers_as_for_one() {
    for layers in [1, 3, 10] {
        let sketched = [0, 0, 1, 4, 0, 0, 0, 1, 4];
        assert_eq!(Counted::new(layers, (40, 70)).waits(false), sketched, "{layers} layers");
        assert_eq!(
            Counted::new(layers, (40, 70)).waits(true),
            [0, 4, 0, 0, 0, 0, 4],
            "{layers} exact layers"
        );
        assert_eq!(Counted::new(layers, (70, 90)).waits(true), [0, 4, 0, 0, 0, 0, 4], "{layers} larger ones");
    }
}

/// Layers with one input have one knowledge space, which is on the device once.
#[test]
fn layers_with_the_same_input_share_their_protected_directions() {
    for method in [Method::Gems, Method::Lora, Method::Full] {
        let held = |of_site: &[usize]| {
            let space = knowledge(NullSide::Input, 5).spaces[0].clone();
            let mut world = World::new();
            let be = Arc::clone(&world.be);
            world.layers.truncate(1);
            let shape = world.shapes[0].clone();
            let shapes: Vec<SiteShape> = of_site.iter().map(|_| shape.clone()).collect();
            for _ in 1..of_site.len() {
                let weight = be.duplicate(world.layers[0].weight.mat(), DType::F32).unwrap();
                world.layers.push(AdaptedLinear { weight, bias: None, branch: None });
            }
            let basis = KnowledgeBasis {
                of_site: of_site.iter().map(|i| Some(*i)).collect(),
                spaces: vec![space; of_site.len()],
                final_hidden: None,
                ..knowledge(NullSide::Input, 5)
            };
            let mut settings = small(method);
            settings.null_space.side = NullSide::Input;
            let before = be.memory().live;
            let tuner = Tuner::new(settings, &shapes, &[], 2, Some(&basis), &mut world, &be, 7).unwrap();
            let live = be.memory().live - before;
            drop(tuner);
            let before = be.memory().live;
            let one = be.alloc(5, SHAPES[0].1, DType::F32).unwrap();
            (live, be.memory().live - before, one.len())
        };
        let ((apart, one, _), (together, ..)) = (held(&[0, 1, 2]), held(&[0, 0, 0]));
        assert_eq!(apart - together, 2 * one, "{method:?}");
    }
}
