//! The pull towards the base model.

use super::*;
use crate::support::{assert_close, kernel_devices, on_every_device};

fn settings(method: Method, pull: f64) -> MethodSettings {
    let mut s = small(method);
    s.null_space.pull = pull;
    s
}

/// tau of a run at half the height of its schedule.
fn tau(known: &Knowledge, pull: f64) -> f64 {
    let cost = |site: usize| known.inputs[site].mean() * known.gradients[site].as_ref().unwrap().mean();
    0.5 * pull / (0.5 * (cost(0) + cost(1)))
}

/// Weights of both layers after `steps` steps.
fn weights(s: MethodSettings, known: &Knowledge, steps: u64) -> Vec<Vec<f64>> {
    let mut world = World::new();
    let mut tuner = world.tuner(s, Some(known));
    (0..steps).for_each(|step| drop(world.step(&mut tuner, step, [9, 6])));
    (0..2).map(|site| wide(&world.effective(site))).collect()
}

/// `1/2 |D' - D|² + tau/2 tr(F D' C D'ᵀ)` has no slope at the change D' that is left of D.
#[test]
fn the_pull_solves_its_quadratic() {
    on_every_device(|| {
        for (method, known) in [
            (Method::Gems, 99),
            (Method::Gems, 5),
            (Method::Galore, 13),
            (Method::Full, 20),
            (Method::Full, 4),
        ] {
            let (known, pull) = (moments(known), 0.6);
            let base = weights(settings(method, 0.0), &known, 0);
            let free = weights(settings(method, 0.0), &known, 4);
            let pulled = weights(settings(method, pull), &known, 4);
            for site in 0..2 {
                let (_, n) = SHAPES[site];
                let less =
                    |a: &[f64]| -> Vec<f64> { a.iter().zip(&base[site]).map(|(a, b)| a - b).collect() };
                let (d, left) = (less(&free[site]), less(&pulled[site]));
                let f = matrix_of(known.gradients[site].as_ref().unwrap(), |v| v);
                let c = matrix_of(&known.inputs[site], |v| v);
                let m = f.len() / SHAPES[site].0;
                let cost = times(&times(&f, &left, m), &c, n);
                let tau = tau(&known, pull);
                let slope: Vec<f32> = (0..d.len()).map(|e| (left[e] - d[e] + tau * cost[e]) as f32).collect();
                let size = d.iter().fold(0f64, |s, v| s.max(v.abs()));
                let moved = d.iter().zip(&left).fold(0f64, |s, (a, b)| s.max((a - b).abs()));
                assert!(moved > 0.05 * size, "{method:?}: nothing was pulled");
                assert_close(&format!("{method:?}"), &slope, &vec![0.0; d.len()], 0.0, 2e-4 * size);
            }
        }
    });
}

/// LoRA: the same quadratic over B with A held, of which the slope is that over D times Aᵀ.
#[test]
fn the_pull_of_lora_solves_it_over_b() {
    on_every_device(|| {
        for known in [99, 6] {
            let (known, pull) = (moments(known), 0.6);
            let base = weights(settings(Method::Lora, 0.0), &known, 0);
            let free = weights(settings(Method::Lora, 0.0), &known, 4);
            let mut world = World::new();
            let mut tuner = world.tuner(settings(Method::Lora, pull), Some(&known));
            (0..4).for_each(|step| drop(world.step(&mut tuner, step, [9, 6])));
            for site in 0..2 {
                let (m, n) = SHAPES[site];
                let pulled = wide(&world.effective(site));
                let less =
                    |a: &[f64]| -> Vec<f64> { a.iter().zip(&base[site]).map(|(a, b)| a - b).collect() };
                let (d, left) = (less(&free[site]), less(&pulled));
                let f = matrix_of(known.gradients[site].as_ref().unwrap(), |v| v);
                let c = matrix_of(&known.inputs[site], |v| v);
                let (cost, tau) = (times(&times(&f, &left, m), &c, n), tau(&known, pull));
                let slope: Vec<f64> = (0..d.len()).map(|e| left[e] - d[e] + tau * cost[e]).collect();
                let (a, rows, _) = bases_of(&world, site);
                let across: Vec<f64> =
                    (0..n * rows).map(|e| f64::from(a[(e % rows) * n + e / rows])).collect();
                let size = times(&d, &across, n).iter().fold(0f64, |s, v| s.max(v.abs()));
                let along = narrow(&times(&slope, &across, n));
                assert_close("slope along A", &along, &vec![0.0; along.len()], 0.0, 2e-3 * size);
            }
        }
    });
}

/// Weights of bf16 are rounded once, stochastically: by at most a unit in the last place, and right on average.
#[test]
fn a_pull_of_bf16_weights_is_rounded_once() {
    let (known, pull) = (moments(99), 0.6);
    let after = |last: bool| {
        let mut world = World::on(kernel_devices(DType::BF16).remove(0), DType::BF16);
        let start: Vec<Vec<f64>> = (0..2).map(|site| wide(&world.effective(site))).collect();
        let mut tuner = world.tuner(settings(Method::Gems, pull), Some(&known));
        (0..3).for_each(|step| drop(world.step(&mut tuner, step, [9, 6])));
        world.step_of(&mut tuner, 3, [9, 6], last);
        (start, (0..2).map(|site| wide(&world.effective(site))).collect::<Vec<_>>())
    };
    let ((start, free), (_, pulled)) = (after(true), after(false));
    let (mut sum, mut steps) = (0.0, 0.0);
    for site in 0..2 {
        let (f, c) = (known.gradients[site].as_ref().unwrap(), &known.inputs[site]);
        let ((m, n), d) =
            (SHAPES[site], free[site].iter().zip(&start[site]).map(|(a, b)| a - b).collect::<Vec<_>>());
        let size = d.iter().fold(0f64, |s, v| s.max(v.abs()));
        let (uf, uc) = (wide(&f.directions), wide(&c.directions));
        let mut along = times(&times(&uf, &d, m), &transposed(&uc, n), n);
        let tau = tau(&known, pull);
        along.iter_mut().enumerate().for_each(|(e, v)| *v /= 1.0 + tau * f.values[e / n] * c.values[e % n]);
        let left = times(&times(&transposed(&uf, m), &along, m), &uc, n);
        for ((w, left), start) in pulled[site].iter().zip(&left).zip(&start[site]) {
            let want = start + left;
            let unit = 2f64.powi(want.abs().log2().floor() as i32 - 7);
            // What the model sees of B before the fold is bf16.
            let seen = size / 256.0;
            assert!((w - want).abs() < 1.01 * unit + seen, "{w}, not {want}");
            if unit > 8.0 * seen {
                sum += (w - want) / unit;
                steps += 1.0;
            }
        }
    }
    // A deviation of at most 1/2 each.
    assert!(steps > 50.0, "{steps}");
    assert!((sum / steps).abs() < 2.0 / f64::sqrt(steps), "{} of {steps}", sum / steps);
}

/// Where nothing was learned the weights stay what they are.
#[test]
fn nothing_is_pulled_where_nothing_was_learned() {
    on_every_device(|| {
        let known = moments(5);
        let mut s = settings(Method::Gems, 0.9);
        (s.optimizer.clip_norm, s.optimizer.eps) = (1e-30, 1.0);
        let (before, after) = (weights(s.clone(), &known, 0), weights(s, &known, 5));
        for (before, after) in before.iter().zip(&after) {
            assert_close("W", &narrow(after), &narrow(before), 0.0, 1e-6);
        }
    });
}
