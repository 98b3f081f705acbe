//! Resuming.

use super::{World, moments, small};
use crate::support::on_every_device;
use gems_engine::gems::*;
use gems_engine::train::checkpoint;
use serde_json::Value;
use std::sync::Arc;

/// Rehearsal, step factors, the pull and the metric: each alone, and all that a method takes.
#[test]
fn resuming_equals_going_on_with_what_keeps_knowledge() {
    let rehearse = |s: &mut MethodSettings| s.rehearsal.every = 3;
    let factors = |s: &mut MethodSettings| s.null_space.step_factors = true;
    let pull = |s: &mut MethodSettings| s.null_space.pull = 0.5;
    let metric = |s: &mut MethodSettings| s.null_space.side = NullSide::Metric;
    let all: [&dyn Fn(&mut MethodSettings); 4] = [&rehearse, &factors, &pull, &metric];
    on_every_device(|| {
        for (method, refresh, chosen) in [
            (Method::Gems, Refresh::Sketch, &all[..1]),
            (Method::Gems, Refresh::Sketch, &all[2..3]),
            (Method::Gems, Refresh::Sketch, &all[3..]),
            (Method::Gems, Refresh::Exact, &all[..]),
            (Method::Galore, Refresh::Sketch, &all[..]),
            (Method::Lora, Refresh::Auto, &all[..3]),
            (Method::Full, Refresh::Auto, &all[..3]),
        ] {
            let known = moments(5);
            let settings = || {
                let mut s = small(method);
                s.gems.refresh = refresh;
                chosen.iter().for_each(|change| change(&mut s));
                s
            };
            for stop in [1, 3, 4, 6, 8] {
                let mut world = World::new();
                let mut tuner = world.tuner(settings(), Some(&known));
                (0..stop).for_each(|step| drop(world.step(&mut tuner, step, [9, 6])));
                let (tensors, numbers) = tuner.state(&mut world).unwrap();
                let mut other = World::new();
                let mut again = other.unprobed(settings(), Some(&known)).unwrap();
                again.restore(&mut other, &tensors, &numbers).unwrap();
                for step in stop..10 {
                    let rows = if step == 5 { [0, 6] } else { [9, 6] };
                    let (went_on, resumed) =
                        (world.step(&mut tuner, step, rows), other.step(&mut again, step, rows));
                    assert_eq!(went_on.update_norm, resumed.update_norm, "{method:?} from {stop}, {step}");
                    assert_eq!(went_on.rehearsed, resumed.rehearsed);
                }
                assert_eq!(tuner.state(&mut world).unwrap(), again.state(&mut other).unwrap());
            }
        }
    });
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
                let mut again =
                    Optimizer::new(settings(), &shapes, &roles, 2, None, &mut other, &be, 7).unwrap();
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

/// Adam's moments are the optimizer's under every method, whatever they are called.
#[test]
fn a_checkpoint_tells_weights_from_the_optimizers_state() {
    for (method, weights, optimizers) in [
        (Method::Gems, &["a", "b", "w"][..], &["m", "v"][..]),
        (Method::Lora, &["a", "b"], &["m.a", "m.b", "v.a", "v.b"]),
        (Method::Full, &["w"], &["m", "v"]),
    ] {
        let mut world = World::new();
        let mut tuner = world.tuner(small(method), None);
        world.step(&mut tuner, 0, [9, 6]);
        let (tensors, _) = tuner.state(&mut world).unwrap();
        let of = |prefix: &str, kind: StateKind| {
            let mine = tensors.iter().filter(|t| t.kind == kind);
            let mut names: Vec<&str> = mine.filter_map(|t| t.name.strip_prefix(prefix)).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(of("site.1.", StateKind::Weight), weights, "{method:?}");
        assert_eq!(of("site.1.", StateKind::Optimizer), optimizers, "{method:?}");
        assert_eq!(of("dense.0.", StateKind::Weight), ["x"], "{method:?}");
        assert_eq!(of("dense.0.", StateKind::Optimizer), ["m", "v"], "{method:?}");
    }
}

/// Older builds filed by the end of a name: LoRA's moments `m.a` stand among their weights.
#[test]
fn a_checkpoint_of_an_older_build_is_resumed_from() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let mut tuner = world.tuner(small(Method::Lora), None);
    (0..3).for_each(|step| drop(world.step(&mut tuner, step, [9, 6])));
    let (mut tensors, numbers) = tuner.state(&mut world).unwrap();
    for tensor in &mut tensors {
        let weight = [".w", ".a", ".b", ".x"].iter().any(|end| tensor.name.ends_with(end));
        tensor.kind = if weight { StateKind::Weight } else { StateKind::Optimizer };
    }
    assert!(tensors.iter().any(|t| t.name == "site.0.m.a" && t.kind == StateKind::Weight));
    checkpoint::save(dir.path(), 3, &tensors, numbers).unwrap();

    let found = checkpoint::load_latest(dir.path(), |e| panic!("{e}")).unwrap();
    let mut other = World::new();
    let mut again = other.tuner(small(Method::Lora), None);
    again.restore(&mut other, &found.tensors, &found.state).unwrap();
    for step in 3..6 {
        assert_eq!(world.step(&mut tuner, step, [9, 6]), other.step(&mut again, step, [9, 6]));
    }
    assert_eq!(tuner.state(&mut world).unwrap(), again.state(&mut other).unwrap());
}
