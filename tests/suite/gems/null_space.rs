//! The null space: what is protected, and that updates leave it alone.

use super::{SHAPES, World, knowledge, small};
use crate::support::{Golden, assert_close, backend, on_every_device};
use gems_engine::backend::cpu::Cpu;
use gems_engine::backend::*;
use gems_engine::gems::*;
use gems_engine::layers::*;
use std::sync::Arc;

/// The whole spectrum of a second moment.
fn spectrum_of(moment: &[f32], dim: usize) -> Spectrum {
    let (values, directions) = symmetric_eigen(moment, dim).unwrap();
    let values = values.into_iter().map(|v| v.max(0.0)).collect();
    Spectrum { dim, directions, values, samples: dim, ..Spectrum::default() }
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
                        let mut moment = Moment::whole(&be, x.cols()).unwrap();
                        let half = x.rows() / 2 * x.cols();
                        for part in [&x.values[..half], &x.values[half..]] {
                            let rows = be.tensor(part, part.len() / x.cols(), x.cols(), DType::F32).unwrap();
                            moment.add(rows.mat()).unwrap();
                        }
                        assert_close(&key("cov"), &moment.mean().unwrap(), &cov.values, 1e-4, 1e-5);
                    }
                    let threshold = sides[side]["threshold"].as_f64().unwrap();
                    let spectrum = spectrum_of(&cov.values, cov.cols());
                    let space = Space::cut(&spectrum, (Criterion::Absolute, threshold), 0);
                    let null = sides[side]["null_dim"].as_u64().unwrap() as usize;
                    assert_eq!(space.kept(), cov.cols() - null, "{case} {}", key("null_dim"));
                    let g = &t[&format!("{module}.G")];
                    let mut projected = be.tensor(&g.values, g.rows(), g.cols(), DType::F32).unwrap();
                    let columns = transpose(&space.directions, space.kept(), space.dim());
                    let k = be.tensor(&columns, space.dim(), space.kept(), DType::F32).unwrap();
                    match side {
                        "input" => be.run(ProjectRows { x: projected.mat_mut(), k: k.mat() }).unwrap(),
                        _ => be.run(ProjectColumns { x: projected.mat_mut(), k: k.mat() }).unwrap(),
                    }
                    let got = be.download(projected.mat()).unwrap();
                    let tolerance = golden.tolerance(&file, "projected.atol", 2e-3);
                    assert_close(&key("projected"), &got, &t[&key("projected")].values, 0.0, tolerance);
                }
            }
            if let (Some(cov), Some(p)) = (t.get("fallback.cov"), t.get("fallback.P")) {
                let spectrum = spectrum_of(&cov.values, cov.cols());
                let space = Space::cut(&spectrum, (Criterion::Absolute, 0.02), 0);
                let trace: f32 = (0..p.cols()).map(|i| p.values[i * p.cols() + i]).sum();
                assert_eq!(space.dim() - space.kept(), trace.round() as usize, "{case} fallback");
            }
        }
    });
}

/// Largest entry of `dW K` (input side) or `Kᵀ dW` (output side).
pub fn leak(change: &[f32], (m, n): (usize, usize), space: &Spectrum, side: NullSide) -> f32 {
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
                    settings.null_space.item_rows = 1.0;
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
                        let known =
                            if side == NullSide::Input { basis.input(site) } else { basis.output(site) };
                        let worst = leak(&change, SHAPES[site], known.unwrap(), side);
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
                    let space = basis.hidden.as_ref().unwrap();
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
    assert!(leak(&change, SHAPES[0], basis.output(0).unwrap(), NullSide::Output) > 1e-3);
}

/// Layers with one input have one knowledge space, which is on the device once.
#[test]
fn layers_with_the_same_input_share_their_protected_directions() {
    for method in [Method::Gems, Method::Lora, Method::Full] {
        let held = |of_site: &[usize]| {
            let spectrum = knowledge(NullSide::Input, 5).inputs[0].clone();
            let mut world = World::new();
            let be = Arc::clone(&world.be);
            world.layers.truncate(1);
            let shape = world.shapes[0].clone();
            let shapes: Vec<Site> = of_site.iter().map(|_| shape.clone()).collect();
            for _ in 1..of_site.len() {
                let weight = be.duplicate(world.layers[0].weight.mat(), DType::F32).unwrap();
                world.layers.push(AdaptedLinear { weight: weight.into(), bias: None, branch: None });
            }
            let basis = Knowledge {
                input_of_site: of_site.iter().map(|i| Some(*i)).collect(),
                inputs: vec![spectrum; of_site.len()],
                gradients: Vec::new(),
                hidden: None,
                ..knowledge(NullSide::Input, 5)
            };
            let mut settings = small(method);
            settings.null_space.side = NullSide::Input;
            let before = be.memory().live;
            let tuner = Optimizer::new(settings, &shapes, &[], 2, Some(&basis), &mut world, &be, 7).unwrap();
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

/// Folds into weights that the CPU keeps as bf16: what is protected stays so up to the rounding of the weights, which is at
/// random, so that small changes are not lost.
#[test]
fn folds_into_bf16_weights_leave_the_knowledge_space_but_for_their_rounding() {
    for method in [Method::Gems, Method::Galore] {
        for protects in [true, false] {
            let basis = knowledge(NullSide::Input, 5);
            let mut settings = small(method);
            settings.null_space.side = if protects { NullSide::Input } else { NullSide::None };
            let be: Arc<dyn Backend> = Cpu::open(None).unwrap();
            let mut world = World::on(be, DType::BF16);
            let before: Vec<Vec<f32>> = (0..2).map(|s| world.effective(s)).collect();
            let mut tuner = world.tuner(settings, Some(&basis));
            for step in 0..13 {
                assert!(world.step(&mut tuner, step, [9, 6]).finite);
            }
            for site in 0..2 {
                let change: Vec<f32> =
                    world.effective(site).iter().zip(&before[site]).map(|(a, b)| a - b).collect();
                let (m, n) = SHAPES[site];
                let space = basis.input(site).unwrap();
                let inside = leak(&change, (m, n), space, NullSide::Input);
                // Three folds at random, each off by at most half a unit in the last place in the mean square, along a
                // unit vector: five standard deviations.
                let mean_square = before[site].iter().map(|w| w * w).sum::<f32>() / (m * n) as f32;
                let bound = 5.0 * (3.0 * mean_square).sqrt() * 2f32.powi(-8);
                assert_eq!(world.layers[site].weight.dtype(), DType::BF16);
                assert_eq!(inside < bound, protects, "{method:?} layer {site}: {inside} of {bound}");
            }
        }
    }
}
