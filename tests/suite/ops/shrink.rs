//! What the pull keeps of a change, along eigenvectors.

use super::*;

const TAU: f32 = 0.7;
/// Mean eigenvalues of directions that are not known.
const RESTS: (f32, f32) = (0.3, 1.1);

/// Along known directions of the `sides` that are known, where those with `others` have other directions too.
pub fn of_change((m, n): (usize, usize), sides: (bool, bool), others: (bool, bool)) -> Case {
    Case::new(format!("shrink {m}x{n}, known {sides:?}, others {others:?}"), move |on| {
        let (f, c) = (on.squares(2, 1, m), on.squares(3, 1, n));
        let x = on.view(1, (m, n), 3, DType::F32);
        Prepared::new([("x", x)], move |[x], run| {
            let known = [&f, &c].map(|values| values.mat());
            let side = |i: usize, given: bool, others: bool, rest| Eigenvalues {
                known: given.then_some(known[i]),
                rest: others.then_some(rest),
            };
            let rows = side(0, sides.0, others.0, RESTS.0);
            run(Shrink { x, rows, cols: side(1, sides.1, others.1, RESTS.1), tau: TAU }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let shape = (s.hidden, s.intermediate);
    vec![
        of_change(shape, (true, true), (true, true)).into(),
        of_change(shape, (true, false), (true, true)).into(),
    ]
}

#[test]
fn shrink_by_its_formula() {
    const BOTH: [bool; 2] = [false, true];
    for (m, n) in [(1, 1), (3, 8), (5, 13), (70, 257)] {
        let (x, squares) = (exactly(1, m * n), |seed, n| exactly(seed, n).iter().map(|v| v * v).collect());
        let (f, c): (Vec<f64>, Vec<f64>) = (squares(2, m), squares(3, n));
        for known in BOTH.into_iter().flat_map(|f| BOTH.map(|c| (f, c))) {
            for others in BOTH.into_iter().flat_map(|f| BOTH.map(|c| (f, c))) {
                let rest = |others: bool, rest: f32| others.then_some(f64::from(rest));
                let (f_rest, c_rest) = (rest(others.0, RESTS.0), rest(others.1, RESTS.1));
                let g = |f: Option<f64>, c: Option<f64>| match (f, c) {
                    (Some(f), Some(c)) => 1.0 / (1.0 + f64::from(TAU) * f * c),
                    _ => 0.0,
                };
                let factor = |f: f64, c: f64| match known {
                    (true, true) => {
                        g(Some(f), Some(c)) - g(f_rest, Some(c)) - g(Some(f), c_rest) + g(f_rest, c_rest)
                    }
                    (true, false) => g(Some(f), c_rest) - g(f_rest, c_rest),
                    (false, true) => g(f_rest, Some(c)) - g(f_rest, c_rest),
                    (false, false) => g(f_rest, c_rest),
                };
                let want = (0..m * n).map(|e| x[e] * factor(f[e / n], c[e % n])).collect();
                follows(&of_change((m, n), known, others), &[want]);
                parity(of_change((m, n), known, others));
            }
        }
    }
}
