//! The nonlinearity of a feed-forward block.

use super::*;

/// Gate and up are halves of one buffer; without up, dup is missing too.
pub fn forward(kind: Activation, t: usize, f: usize, gated: bool) -> Case {
    Case::new(format!("activation {t}x{f}"), move |on| {
        let both = on.compute(1, t, if gated { 2 * f } else { f });
        Prepared::new([("y", on.unwritten(t, f))], move |[y], run| {
            let (gate, up) = halves(&both, f);
            run(Activate { kind, gate, up, y }.into())
        })
    })
}

pub fn backward(kind: Activation, t: usize, f: usize, gated: bool) -> Case {
    Case::new(format!("activation gradient {t}x{f}"), move |on| {
        let (both, dy) = (on.compute(1, t, if gated { 2 * f } else { f }), on.compute(2, t, f));
        let dup = ("dup", on.unwritten(t, if gated { f } else { 0 }));
        Prepared::new([("dgate", on.unwritten(t, f)), dup], move |[dgate, dup], run| {
            let (gate, up) = halves(&both, f);
            run(ActivateBackward { kind, gate, up, dy: dy.mat(), dgate, dup: up.map(|_| dup) }.into())
        })
    })
}

fn halves(both: &Tensor, f: usize) -> (Mat<'_>, Option<Mat<'_>>) {
    let gated = both.cols() > f;
    (both.mat().col_range(0..f), gated.then(|| both.mat().col_range(f..2 * f)))
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let (kind, t, f) = (s.activation, s.tokens, s.intermediate);
    vec![forward(kind, t, f, s.gated).into(), backward(kind, t, f, s.gated).into()]
}

const KINDS: [Activation; 3] = [Activation::Silu, Activation::Relu, Activation::GeluTanh];

#[test]
fn activations() {
    for kind in KINDS {
        for (t, f) in [(1, 1), (6, 24), (9, 131)] {
            for gated in [true, false] {
                parity(forward(kind, t, f, gated));
                parity(backward(kind, t, f, gated));
            }
        }
    }
}

/// The value of the function, and its derivative by a central difference.
#[test]
fn activations_by_their_formulas() {
    let (t, f) = (5, 13);
    let both = exactly(1, t * 2 * f);
    let dy = exactly(2, t * f);
    let at = |e: usize| (both[e / f * 2 * f + e % f], both[e / f * 2 * f + f + e % f]);
    for kind in KINDS {
        let value = |x: f64| match kind {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Relu => x.max(0.0),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
        };
        let slope = |x: f64| (value(x + 1e-5) - value(x - 1e-5)) / 2e-5;
        let all = |formula: &dyn Fn(usize) -> f64| (0..t * f).map(formula).collect::<Vec<f64>>();
        follows(&forward(kind, t, f, true), &[all(&|e| value(at(e).0) * at(e).1)]);
        let dgate = all(&|e| dy[e] * at(e).1 * slope(at(e).0));
        follows(&backward(kind, t, f, true), &[dgate, all(&|e| dy[e] * value(at(e).0))]);
    }
}
