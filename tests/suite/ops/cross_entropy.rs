//! The vocabulary projection and its cross entropy.

use super::*;

const SCALE: f32 = 0.3;
const CAP: f32 = 1.1;

/// The head's rows from `trained` on have a gradient; from the vocabulary's end on: none has. `gradients`: whether x has
/// one.
pub fn of_labels(
    l: usize,
    d: usize,
    v: usize,
    softcap: Option<f32>,
    gradients: bool,
    trained: usize,
) -> Case {
    let what = ["loss", "head and loss"][usize::from(gradients)];
    Case::new(format!("{what} {l}x{d}->{v}"), move |on| {
        let (x, head) = (on.compute(1, l, d), on.compute(2, v, d));
        let targets = on.indices((0..l).map(|i| (i * 7919 % v) as u32));
        let weights: Vec<f32> = (0..l).map(|i| 0.5 + i as f32 / l as f32).collect();
        let (weights, segments) = (on.given(&weights, l, 1), [0..l / 3, l / 3..l]);
        let outputs = [
            ("nll", on.unwritten_f32(l, 1)),
            ("dx", on.unwritten(if gradients { l } else { 0 }, d)),
            ("dhead", on.added_to_f32(3, 2 * (v - trained), d)),
        ];
        Prepared::new(outputs, move |[nll, dx, dhead], run| {
            let grad = PerSegment { segments: &segments, out: dhead };
            let op = CrossEntropy {
                x: x.mat(),
                head: head.mat(),
                logit_scale: SCALE,
                softcap,
                targets: &targets,
                weights: weights.mat(),
                nll,
                dx: gradients.then_some(dx),
                head_gradient: (trained < v).then_some(HeadGradient { first_row: trained, grad }),
            };
            run(op.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let (l, v) = (s.labels, s.vocabulary);
    vec![of_labels(l, s.hidden, v, None, true, v).into()]
}

const SIZES: [(usize, usize, usize, usize); 3] = [(1, 8, 3, 0), (9, 16, 50, 40), (40, 24, 331, 328)];

#[test]
fn cross_entropy_and_its_gradients() {
    for (l, d, v, trained) in SIZES {
        for softcap in [None, Some(CAP)] {
            parity(of_labels(l, d, v, softcap, true, trained));
            parity(of_labels(l, d, v, softcap, false, v));
        }
    }
}

#[test]
fn cross_entropy_by_its_formula() {
    for ((l, d, v, trained), softcap) in SIZES.into_iter().flat_map(|size| [(size, None), (size, Some(CAP))])
    {
        let (x, head) = (exactly(1, l * d), exactly(2, v * d));
        let (mut nll, mut dx, mut dhead) =
            (vec![0.0; l], vec![0.0; l * d], exactly(3, 2 * (v - trained) * d));
        for i in 0..l {
            let logit =
                |j: usize| f64::from(SCALE) * (0..d).map(|c| x[i * d + c] * head[j * d + c]).sum::<f64>();
            let capped = |z: f64| softcap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh());
            let slope = |z: f64| softcap.map_or(1.0, |cap| 1.0 - (z / f64::from(cap)).powi(2));
            let logits: Vec<f64> = (0..v).map(|j| capped(logit(j))).collect();
            let most = logits.iter().fold(f64::MIN, |m, z| m.max(*z));
            let sum = most + logits.iter().map(|z| (z - most).exp()).sum::<f64>().ln();
            let (target, weight) = (i * 7919 % v, 0.5 + i as f64 / l as f64);
            nll[i] = sum - logits[target];
            for j in 0..v {
                let p = (logits[j] - sum).exp() - f64::from(u8::from(j == target));
                let dlogit = weight * f64::from(SCALE) * p * slope(logits[j]);
                (0..d).for_each(|c| dx[i * d + c] += dlogit * head[j * d + c]);
                if j >= trained {
                    let row = usize::from(i >= l / 3) * (v - trained) + j - trained;
                    (0..d).for_each(|c| dhead[row * d + c] += dlogit * x[i * d + c]);
                }
            }
        }
        follows(&of_labels(l, d, v, softcap, true, trained), &[nll, dx, dhead]);
    }
}
