//! One step: its definition, absent tasks, decay, bad numbers, matched norms, settings that are refused.

use super::{SHAPES, World, bases_of, observe_losses, small};
use crate::support::{assert_close, on_every_device};
use gems_engine::gems::*;
use gems_engine::layers::*;
use std::sync::Arc;

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
                let of_site = wanted[site].iter().map(|v| (*v as f64).powi(2)).sum::<f64>();
                let told = report.layers[site].change;
                assert!((told / of_site.sqrt() - 1.0).abs() < 1e-4, "{bases:?} site {site}: {told}");
                square += of_site;
            }
            assert!(
                (report.update_norm / square.sqrt() - 1.0).abs() < 1e-4,
                "{bases:?} {}",
                report.update_norm
            );
        }
    });
}

/// Coordinates of the tasks' gradients in the shared subspace of a layer, in f64.
fn coordinates(world: &World, site: usize, step: u64, rows: [usize; 2]) -> [Vec<f64>; 2] {
    let (m, n) = SHAPES[site];
    let (a, _, _) = bases_of(world, site);
    let (x, dy) = world.material(site, step, rows);
    let (x, dy) = (world.be.download(x.mat()).unwrap(), world.be.download(dy.mat()).unwrap());
    let h = |t: usize, c: usize| (0..n).map(|j| x[t * n + j] as f64 * a[c * n + j] as f64).sum::<f64>();
    [0..rows[0], rows[0]..rows[0] + rows[1]].map(|tokens| {
        let at = |i: usize, c: usize| tokens.clone().map(|t| dy[t * m + i] as f64 * h(t, c)).sum();
        (0..m * 3).map(|e| at(e / 3, e % 3)).collect()
    })
}

#[test]
fn how_the_tasks_compete_is_told_layer_by_layer() {
    on_every_device(|| {
        let mut world = World::new();
        let mut tuner = world.tuner(small(Method::Gems), None);
        let tasks: Vec<[Vec<f64>; 2]> = (0..2).map(|site| coordinates(&world, site, 0, [9, 6])).collect();
        let report = world.step(&mut tuner, 0, [9, 6]);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        let told = |found: &Competition, [first, second]: &[Vec<f64>; 2]| {
            let sum: Vec<f64> = first.iter().zip(second).map(|(a, b)| a + b).collect();
            let want = [cosine(first, second), cosine(first, &sum), cosine(second, &sum)];
            assert_eq!((found.cosines.len(), found.cosines[0].0, found.cosines[0].1), (1, 0, 1));
            for (got, want) in [found.cosines[0].2, found.alignments[0], found.alignments[1]].iter().zip(want)
            {
                assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
        };
        assert_eq!(report.layers.iter().map(|layer| layer.site).collect::<Vec<_>>(), [0, 1]);
        report.layers.iter().for_each(|layer| told(&layer.competition, &tasks[layer.site]));
        let both = [0, 1].map(|task| [tasks[0][task].clone(), tasks[1][task].clone()].concat());
        told(&report.competition, &both);
        // A task without a gradient lies nowhere.
        let alone = world.step(&mut tuner, 1, [9, 0]).competition;
        assert!(alone.cosines.is_empty() && alone.alignments[1].is_nan());
        assert!((alone.alignments[0] - 1.0).abs() < 1e-5);
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

/// A delta decays whole: also the subspace of a task that a step has no sample of, whose moments stay as they are.
#[test]
fn decay_reaches_the_subspace_of_a_task_that_a_step_lacks() {
    let mut settings = small(Method::Gems);
    (settings.optimizer.weight_decay, settings.optimizer.decay) = (0.5, Decay::Delta);
    let mut world = World::new();
    let mut tuner = world.tuner(settings, None);
    world.step(&mut tuner, 0, [9, 6]);
    // The last column is the last task's.
    let column = |tuner: &mut Optimizer, world: &mut World, name: &str| -> Vec<f32> {
        let (state, _) = tuner.state(world).unwrap();
        let tensor = state.iter().find(|t| t.name == name).unwrap();
        tensor.values.chunks(tensor.cols).map(|row| row[tensor.cols - 1]).collect()
    };
    let names = ["site.0.b", "site.0.m", "site.0.v"];
    let before = names.map(|name| column(&mut tuner, &mut world, name));
    world.step(&mut tuner, 1, [9, 0]);
    let after = names.map(|name| column(&mut tuner, &mut world, name));
    assert!(before[0].iter().any(|b| *b != 0.0));
    let decayed: Vec<f32> = before[0].iter().map(|b| b * (1.0 - 0.01 * 0.5)).collect();
    assert_close("coordinates", &after[0], &decayed, 1e-6, 0.0);
    assert_eq!(after[1..], before[1..]);
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
        assert!(!tuner.step(&mut world, &input).unwrap().finite);
        assert_eq!(before.0, world.effective(0));
        assert_eq!(before.1, tuner.state(&mut world).unwrap(), "{method:?}");
    }
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
        let report = tuner.step(&mut world, &input).unwrap();
        assert!((report.update_norm - 0.125).abs() < 1e-6);
        let square: f64 = (0..2)
            .flat_map(|s| world.effective(s).into_iter().zip(before[s].clone()).collect::<Vec<_>>())
            .map(|(a, b)| ((a - b) as f64).powi(2))
            .sum();
        assert!((square.sqrt() - 0.125).abs() < 1e-4, "{method:?}: {}", square.sqrt());
    }
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
        Optimizer::new(too_large, &shapes, &[None], 2, None, &mut world, &be, 0).err().unwrap().to_string();
    assert!(refused.contains("layer.0") && refused.contains("gems.rank"), "{refused}");
    let mut unknown = small(Method::Gems);
    unknown.gems.targets = vec!["query".into()];
    let refused =
        Optimizer::new(unknown, &shapes, &[None], 2, None, &mut world, &be, 0).err().unwrap().to_string();
    assert!(refused.contains("query"), "{refused}");
    let mut decays = small(Method::Gems);
    decays.optimizer.decay = Decay::Weights;
    decays.optimizer.weight_decay = 0.1;
    assert!(decays.validate().is_err());
    let mut nothing = small(Method::Gems);
    nothing.gems.rank = 0;
    assert!(nothing.validate().is_err());
}

/// A target is a projection, or five letters and more of a module's name.
#[test]
fn targets_are_projections_or_parts_of_module_names() {
    for projection in Projection::ALL {
        assert_eq!(Projection::parse(projection.name()), Some(projection));
    }
    assert_eq!(Projection::parse("Q"), None);
    let sites = World::new().shapes;
    let adapted = |targets: &[&str]| {
        let mut settings = small(Method::Gems);
        settings.gems.targets = targets.iter().map(|t| t.to_string()).collect();
        settings.adapted(&sites).map_err(|e| e.to_string())
    };
    assert_eq!(adapted(&["q"]).unwrap(), [true, false]);
    assert_eq!(adapted(&["layer", "down"]).unwrap(), [true, true]);
    assert_eq!(adapted(&["ayer.1"]).unwrap(), [false, true]);
    for (targets, named) in [
        (&["q", "laye"][..], "no layer is a \"laye\""),
        (&["q", "layer.2"], "no layer is a \"layer.2\""),
        (&["down", "gate"], "no layer is a [\"down\", \"gate\"]"),
        (&[], "no layer is a []"),
    ] {
        let refused = adapted(targets).unwrap_err();
        assert!(refused.contains(named), "{refused}");
    }
}

/// What data parallelism needs: the gradients of one machine added to another's are those of one machine that saw
/// everything, for every way of tuning, and clipping, gates and norms follow from the sums.
#[test]
fn gradients_summed_over_two_machines_are_those_of_one() {
    for method in [Method::Gems, Method::Galore, Method::Lora, Method::Full, Method::Rows] {
        let mut settings = small(method);
        settings.optimizer.clip_norm = 0.1;
        settings.gems.gates.kind = GateKind::InverseNorm;
        let input = StepInput {
            labels: vec![1; 2],
            counts: vec![1.0; 2],
            lr: 0.01,
            lr_rows: 0.02,
            ..Default::default()
        };
        let report = |seen: [&[u64]; 2]| {
            let mut worlds = [World::new(), World::new()];
            let mut machines = worlds.each_mut().map(|world| world.tuner(settings.clone(), None));
            let mut before = Vec::new();
            for ((world, machine), steps) in worlds.iter().zip(&mut machines).zip(seen) {
                machine.begin_step().unwrap();
                before.push(machine.begin_leaves(&input.labels).unwrap());
                steps.iter().for_each(|step| world.observe(machine, *step, [9, 6]));
                observe_losses(machine, &world.be, &[steps.len() as f32; 2]);
            }
            let [one, other] = &mut machines;
            let be = Arc::clone(&worlds[0].be);
            let (mut sum, more) = (one.take_leaf(&[]).unwrap(), other.take_leaf(&[]).unwrap());
            be.axpy(1.0, more.mat(), sum.mat_mut()).unwrap();
            one.put_sum(sum.mat(), before[0].mat()).unwrap();
            let report = one.step(&mut worlds[0], &input).unwrap();
            (report, worlds[0].effective(0), worlds[0].effective(1))
        };
        let ((together, a, b), (apart, c, d)) = (report([&[0, 1], &[]]), report([&[0], &[1]]));
        let numbers = |r: &StepReport| -> Vec<f32> {
            let all = [r.gradient_norm, r.clip, r.update_norm].into_iter().chain(r.losses.clone());
            all.chain(r.gates.clone()).chain(r.task_norms.clone()).map(|v| v as f32).collect()
        };
        assert_close(&format!("{method:?}"), &numbers(&apart), &numbers(&together), 1e-5, 1e-6);
        for (apart, together) in [(c, a), (d, b)] {
            assert_close(&format!("{method:?}: weights"), &apart, &together, 1e-5, 1e-5);
        }
        assert!(together.clip < 1.0 && together.losses == [2.0, 2.0], "{together:?}");
    }
}
