//! Gates and surgery against their definitions.

use super::{World, floats, narrow, small};
use crate::support::{FactorCase, Golden, assert_close, backend, numbers, on_every_device};
use gems_engine::backend::*;
use gems_engine::gems::*;

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
            for (key, shares) in
                [("heuristic", [0.4, 0.4, 0.2]), ("heuristic_alpha06_beta03_gamma01", [0.6, 0.3, 0.1])]
            {
                let own = signals.norms.iter().enumerate().map(|(t, n)| (GramEntry::Own(t), n * n)).collect();
                let step = FactorCase { products: own, ..FactorCase::of(&signals.losses, &signals.counts) };
                let got = step.factors(&backend(), GateRule::Shares(shares));
                let gates = &got[1 + signals.losses.len()..];
                assert_close(key, gates, &narrow(&floats(&case[key])), 0.0, 1e-6);
            }
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
fn learned_gates_learn_which_subspace_helps() {
    // Raising task 0's gate lowers the loss, raising task 1's raises it.
    let settings = GateSettings { kind: GateKind::Learned, ..Default::default() };
    let mut gates = Gates::new(&settings, 2, 3);
    let signals = TaskSignals { losses: vec![1.0, 1.0], norms: vec![1.0, 1.0], counts: vec![1.0, 1.0] };
    let first = gates.learn(&signals, &[0.0, 0.0]).unwrap();
    assert!((first[0] - 0.5).abs() < 1e-7);
    let mut last = first;
    for _ in 0..200 {
        last = gates.learn(&signals, &[-1.0, 1.0]).unwrap();
    }
    assert!(last[0] > 0.8, "{last:?}");
    assert!((last.iter().sum::<f32>() - 1.0).abs() < 1e-6);
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
        // Gates are f32.
        assert!(report.finite && (report.gates.iter().sum::<f64>() - 1.0).abs() < 1e-6);
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
        let pairs = (0..tasks).flat_map(|i| (i..tasks).map(move |j| (i, j)));
        let step = FactorCase {
            products: pairs.map(|(i, j)| (GramEntry::Layer(i, j), gram[i][j])).collect(),
            pcgrad: true,
            ..FactorCase::of(&vec![1.0; tasks], &vec![1.0; tasks])
        };
        let weights = &step.factors(&backend(), GateRule::Fixed(1.0))[1..1 + tasks];
        let got = (0..5).map(|c| (0..tasks).map(|t| f64::from(weights[t]) * g[t][c]).sum::<f64>());
        // Products and weights are f32.
        got.zip(&want).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} {b}"));
    }
}
