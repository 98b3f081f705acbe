//! The knowledge metric and step factors.

use super::*;
use crate::support::{assert_close, on_every_device};

fn settings(method: Method, refresh: Refresh) -> MethodSettings {
    let mut s = small(method);
    s.gems.refresh = refresh;
    s.null_space = NullSpaceSettings { side: NullSide::Metric, damping: 0.2, ..NullSpaceSettings::off() };
    s
}

/// S (or P), in f64: `(C / c + damping)^-1/2`, scaled to a mean square eigenvalue of 1; and its inverse.
fn metric(s: &Spectrum, damping: f64) -> [Vec<f64>; 2] {
    let root = |v: f64| (v / s.mean() + damping).powf(-0.5);
    let square = matrix_of(s, |v| root(v).powi(2));
    let scale = (s.dim as f64 / (0..s.dim).map(|i| square[i * s.dim + i]).sum::<f64>()).sqrt();
    [matrix_of(s, |v| scale * root(v)), matrix_of(s, |v| 1.0 / (scale * root(v)))]
}

/// `A S^-2 Aᵀ = I`, and the norm that is told is that of dW, whether all directions are known or few.
#[test]
fn coordinates_are_orthonormal_in_the_metric_and_the_change_has_the_norm_that_is_told() {
    on_every_device(|| {
        for (known, refresh) in
            [(99, Refresh::Exact), (99, Refresh::Sketch), (5, Refresh::Exact), (5, Refresh::Sketch)]
        {
            let (mut world, moments) = (World::new(), moments(known));
            let mut s = settings(Method::Gems, refresh);
            s.optimizer.weight_decay = 0.1;
            let mut tuner = world.tuner(s, Some(&moments));
            for step in 0..7 {
                for site in 0..2 {
                    let (a, rows, n) = bases_of(&world, site);
                    let [_, inverse] = metric(&moments.inputs[site], 0.2);
                    let q = times(&wide(&a), &inverse, n);
                    let gram = times(&q, &transposed(&q, n), n);
                    let identity: Vec<f32> =
                        (0..rows * rows).map(|e| f32::from(e / rows == e % rows)).collect();
                    assert_close("A S^-2 A^T", &narrow(&gram), &identity, 0.0, 1e-4);
                }
                let before: Vec<Vec<f64>> = (0..2).map(|site| wide(&world.effective(site))).collect();
                let report = world.step(&mut tuner, step, [9, 6]);
                let square = |site: usize| -> f64 {
                    let after = wide(&world.effective(site));
                    after.iter().zip(&before[site]).map(|(a, b)| (a - b).powi(2)).sum()
                };
                let norm = (square(0) + square(1)).sqrt();
                assert_close("norm", &[report.update_norm as f32], &[norm as f32], 1e-3, 0.0);
            }
        }
    });
}

/// Without noise in its way the first step is known: Adam's first step is the sign of the gradient, so that
/// `dW = -lr P sign(P G Aᵀ) A`.
#[test]
fn the_first_step_by_its_formula() {
    on_every_device(|| {
        for known in [99, 6] {
            let (mut world, moments) = (World::new(), moments(known));
            let mut s = settings(Method::Galore, Refresh::Exact);
            s.null_space.step_factors = true;
            let mut tuner = world.tuner(s, Some(&moments));
            let bases: Vec<_> = (0..2).map(|site| wide(&bases_of(&world, site).0)).collect();
            let before: Vec<Vec<f64>> = (0..2).map(|site| wide(&world.effective(site))).collect();
            world.step(&mut tuner, 0, [9, 6]);
            let cost = |s: &Spectrum| -> f64 {
                let [whitening, _] = metric(s, 0.2);
                let moved = times(&times(&whitening, &matrix_of(s, |v| v), s.dim), &whitening, s.dim);
                (0..s.dim).map(|i| moved[i * s.dim + i]).sum::<f64>() / s.dim as f64
            };
            let outputs: Vec<&Spectrum> = moments.gradients.iter().flatten().collect();
            let factor = |site: usize| (cost(&moments.inputs[site]) * cost(outputs[site])).powf(-0.5);
            let mean = (factor(0) * factor(1)).sqrt();
            for site in 0..2 {
                let ((m, n), [p, _]) = (SHAPES[site], metric(outputs[site], 0.2));
                let (x, dy) = world.material(site, 0, [9, 6]);
                let read = |t: &Tensor| wide(&world.be.download(t.mat()).unwrap());
                let gradient = times(&transposed(&read(&dy), m), &read(&x), 15);
                let along = times(&times(&p, &gradient, m), &transposed(&bases[site], n), n);
                let sign: Vec<f64> = along.iter().map(|v| v.signum()).collect();
                let change = times(&times(&p, &sign, m), &bases[site], 3);
                let want: Vec<f32> = before[site]
                    .iter()
                    .zip(&change)
                    .map(|(w, d)| (w - 0.01 * factor(site) / mean * d) as f32)
                    .collect();
                assert_close("W", &world.effective(site), &want, 1e-4, 1e-4);
            }
        }
    });
}

/// Step factors multiply every method's learning rate.
#[test]
fn step_factors_scale_the_layers_of_every_method() {
    let known = moments(99);
    let cost = |site: usize| known.inputs[site].mean() * known.gradients[site].as_ref().unwrap().mean();
    let want = (cost(1) / cost(0)).sqrt().sqrt();
    for method in [Method::Gems, Method::Galore, Method::Lora, Method::Full] {
        let change = |factors: bool, site: usize| {
            let mut s = small(method);
            s.null_space.step_factors = factors;
            let mut world = World::new();
            let mut tuner = world.tuner(s, Some(&known));
            let before = world.effective(site);
            world.step(&mut tuner, 0, [9, 6]);
            let squares =
                world.effective(site).iter().zip(&before).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            squares.sqrt()
        };
        for (site, want) in [want, 1.0 / want].into_iter().enumerate() {
            let found = change(true, site) / change(false, site);
            // LoRA's change is not linear in the rate: B A has the product of both.
            let tolerance = if method == Method::Lora { 0.05 } else { 1e-3 };
            assert!((found / want - 1.0).abs() < tolerance, "{method:?}: {found}, not {want}");
        }
    }
}

#[test]
fn a_metric_that_cannot_be_meant_is_refused() {
    let bad = |change: &dyn Fn(&mut MethodSettings), says: &str| {
        let mut s = settings(Method::Gems, Refresh::Auto);
        change(&mut s);
        let error = s.validate().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    bad(&|s| s.null_space.damping = 0.0, "null_space.damping is 0");
    bad(&|s| s.null_space.damping = f64::INFINITY, "null_space.damping is inf");
    bad(&|s| s.null_space.pull = -1.0, "null_space.pull is -1");
    bad(&|s| s.null_space.pull = f64::NAN, "null_space.pull is NaN");
    bad(&|s| s.null_space.random = true, "null_space.random");
    bad(&|s| s.gems.method = Method::Lora, "a metric of subspaces");
    bad(&|s| s.gems.method = Method::Full, "a metric of subspaces");
    bad(&|s| s.gems.method = Method::Rows, "tunes none");
    bad(&|s| s.gems.side = Side::Published, "published optimizer");
    let refused = |moments: Option<&Knowledge>, says: &str| {
        let made = World::new().unprobed(settings(Method::Gems, Refresh::Auto), moments);
        let error = made.err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(None, "need the second moment");
    let mut missing = moments(4);
    missing.gradients[1] = None;
    refused(Some(&missing), "this layer's output gradients");
    let mut zero = moments(99);
    zero.inputs[0].values.fill(0.0);
    refused(Some(&zero), "mean eigenvalue of this second moment is 0");
    let mut other = moments(99);
    other.inputs[0].dim = 7;
    refused(Some(&other), "layers have other sizes");
}
