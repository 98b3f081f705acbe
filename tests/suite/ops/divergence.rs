//! The divergence of predictions from earlier ones.

use super::*;

const FACTOR: f32 = 0.7;

/// Rows of a vocabulary; as wide as rows of logits are that are padded to a multiple of 8.
pub fn of_rows(l: usize, v: usize) -> Case {
    Case::new(format!("divergence {l}x{v}"), move |on| {
        let before = on.view(2, (l, v), 3, DType::F32);
        let logits = on.view(1, (l, v), v.next_multiple_of(8) - v, DType::F32);
        let outputs = [("gradient", logits), ("kl", on.nan((l, 1), 2, DType::F32))];
        Prepared::new(outputs, move |[logits, kl], run| {
            run(Divergence { logits, before: before.mat(), factor: FACTOR, kl }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    vec![of_rows(s.labels, s.vocabulary).into()]
}

const SIZES: [(usize, usize); 4] = [(1, 1), (1, 3), (9, 257), (5, 1031)];

#[test]
fn divergence_and_its_gradient() {
    SIZES.into_iter().for_each(|(l, v)| parity(of_rows(l, v)));
}

#[test]
fn divergence_by_its_formula() {
    // Of a single token nothing diverges but by rounding.
    for (l, v) in SIZES.into_iter().filter(|(_, v)| *v > 1) {
        let (now, before) = (exactly(1, l * v), exactly(2, l * v));
        let log_probabilities = |row: &[f64]| -> Vec<f64> {
            let sum = row.iter().map(|z| z.exp()).sum::<f64>().ln();
            row.iter().map(|z| z - sum).collect()
        };
        let (mut gradient, mut kl) = (Vec::new(), Vec::new());
        for (now, before) in now.chunks(v).zip(before.chunks(v)) {
            let (q, p) = (log_probabilities(now), log_probabilities(before));
            kl.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum());
            gradient.extend(p.iter().zip(&q).map(|(p, q)| f64::from(FACTOR) * (q.exp() - p.exp())));
        }
        follows(&of_rows(l, v), &[gradient, kl]);
    }
}
