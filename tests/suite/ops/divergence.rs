//! The divergence of predictions from earlier ones.

use super::*;

const FACTOR: f32 = 0.7;
/// No logit is larger than what it was capped by.
const CAP: f32 = 6.0;

/// Rows of a vocabulary; as wide as rows of logits are that are padded to a multiple of 8.
pub fn of_rows(l: usize, v: usize, softcap: Option<f32>) -> Case {
    Case::new(format!("divergence {l}x{v}"), move |on| {
        let before = on.view(2, (l, v), 3, DType::F32);
        let logits = on.view(1, (l, v), v.next_multiple_of(8) - v, DType::F32);
        let outputs = [("gradient", logits), ("kl", on.nan((l, 1), 2, DType::F32))];
        Prepared::new(outputs, move |[logits, kl], run| {
            run(Divergence { logits, before: before.mat(), factor: FACTOR, softcap, kl }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    vec![of_rows(s.labels, s.vocabulary, None).into()]
}

/// The last so wide that a thread of a GPU's block has several places.
const SIZES: [(usize, usize); 5] = [(1, 1), (1, 3), (9, 257), (5, 1031), (2, 9001)];

#[test]
fn divergence_and_its_gradient() {
    for softcap in [None, Some(CAP)] {
        SIZES.into_iter().for_each(|(l, v)| parity(of_rows(l, v, softcap)));
    }
}

#[test]
fn divergence_by_its_formula() {
    // Of a single token nothing diverges but by rounding.
    let sizes = SIZES.into_iter().filter(|(_, v)| *v > 1);
    for ((l, v), softcap) in sizes.flat_map(|size| [(size, None), (size, Some(CAP))]) {
        let (now, before) = (exactly(1, l * v), exactly(2, l * v));
        let log_probabilities = |row: &[f64]| -> Vec<f64> {
            let sum = row.iter().map(|z| z.exp()).sum::<f64>().ln();
            row.iter().map(|z| z - sum).collect()
        };
        let (mut gradient, mut kl) = (Vec::new(), Vec::new());
        for (now, before) in now.chunks(v).zip(before.chunks(v)) {
            let (q, p) = (log_probabilities(now), log_probabilities(before));
            kl.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum());
            let slope = |z: f64| softcap.map_or(1.0, |cap| 1.0 - (z / f64::from(cap)).powi(2));
            let pairs = p.iter().zip(&q).zip(now);
            gradient.extend(pairs.map(|((p, q), z)| f64::from(FACTOR) * (q.exp() - p.exp()) * slope(*z)));
        }
        follows(&of_rows(l, v, softcap), &[gradient, kl]);
    }
}
