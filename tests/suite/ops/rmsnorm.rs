//! The root-mean-square norm.

use super::*;

const EPS: f32 = 1e-2;

pub fn forward(t: usize, n: usize, residual: bool) -> Case {
    Case::new(format!("rmsnorm {t}x{n}"), move |on| {
        let (x, r, w) = (on.compute(1, t, n), on.compute(2, t, n), on.compute(3, 1, n));
        let s = on.unwritten(if residual { t } else { 0 }, n);
        let outputs = [("s", s), ("y", on.unwritten(t, n)), ("1 / rms", on.unwritten_f32(t, 1))];
        Prepared::new(outputs, move |[s, y, inv_rms], run| {
            let residual = residual.then(|| (r.mat(), s));
            run(Rmsnorm { x: x.mat(), residual, w: w.mat(), eps: EPS, y, inv_rms }.into())
        })
    })
}

/// dx is added to or written; with the weight's gradient by two segments, or without.
pub fn backward(t: usize, n: usize, accumulate: bool, weight: bool) -> Case {
    Case::new(format!("rmsnorm gradient {t}x{n}"), move |on| {
        let (s, w, dy) = (on.compute(1, t, n), on.compute(3, 1, n), on.compute(4, t, n));
        let inv_rms = on.f32(5, t, 1);
        let dx = if accumulate { on.added_to(6, t, n) } else { on.unwritten(t, n) };
        let dw = on.added_to_f32(7, if weight { 2 } else { 0 }, n);
        let segments = [0..t / 2, t / 2..t];
        Prepared::new([("dx", dx), ("dw", dw)], move |[dx, out], run| {
            let dw = weight.then_some(PerSegment { segments: &segments, out });
            let (s, w, inv_rms, dy) = (s.mat(), w.mat(), inv_rms.mat(), dy.mat());
            run(RmsnormBackward { s, w, inv_rms, dy, dx, accumulate, dw }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let (t, d) = (s.tokens, s.hidden);
    vec![forward(t, d, true).into(), backward(t, d, true, false).into()]
}

const SIZES: [(usize, usize); 6] = [(1, 1), (9, 7), (13, 64), (3, 1024), (2, 1025), (2, 2600)];

#[test]
fn rmsnorm_and_its_gradient() {
    for (t, n) in SIZES {
        for (residual, weight) in [(true, true), (false, false)] {
            parity(forward(t, n, residual));
            parity(backward(t, n, residual, weight));
        }
    }
}

#[test]
fn rmsnorm_by_its_formula() {
    for (t, n) in SIZES {
        let [x, r, w] = [(1, t * n), (2, t * n), (3, n)].map(|(seed, n)| exactly(seed, n));
        let s: Vec<f64> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
        let inverse =
            |row: &[f64]| (row.iter().map(|v| v * v).sum::<f64>() / n as f64 + f64::from(EPS)).sqrt().recip();
        let inverses: Vec<f64> = s.chunks(n).map(inverse).collect();
        let y = s.iter().enumerate().map(|(e, s)| w[e % n] * s * inverses[e / n]).collect();
        follows(&forward(t, n, true), &[s, y, inverses]);

        // With u = w dy and i = 1 / rms: dx = i u - i³ s mean(s u).
        let (dy, given) = (exactly(4, t * n), exactly(5, t));
        let (mut dx, mut dw) = (exactly(6, t * n), exactly(7, 2 * n));
        for row in 0..t {
            let at = |c: usize| row * n + c;
            let mean = (0..n).map(|c| x[at(c)] * w[c] * dy[at(c)]).sum::<f64>() / n as f64;
            let i = given[row];
            for c in 0..n {
                dx[at(c)] += i * w[c] * dy[at(c)] - i.powi(3) * x[at(c)] * mean;
                dw[usize::from(row >= t / 2) * n + c] += dy[at(c)] * x[at(c)] * i;
            }
        }
        follows(&backward(t, n, true, true), &[dx, dw]);
    }
}
