//! The rotary position embedding.

use super::*;

/// Of each head's d values the first r turn.
pub fn turned(t: usize, heads: usize, (r, d): (usize, usize), factor: f32, inverse: bool) -> Case {
    Case::new(format!("rope {t} tokens, {heads} heads of {d}"), move |on| {
        let positions = on.indices((0..t as u32).map(|i| i * 37));
        let inv_freq = on.given(&frequencies(r), 1, r / 2);
        let x = on.view(1, (t, heads * d), 5, on.be.compute_dtype());
        Prepared::new([("x", x)], move |[x], run| {
            run(Rope { x, positions: &positions, inv_freq: inv_freq.mat(), heads, factor, inverse }.into())
        })
    })
}

fn frequencies(d: usize) -> Vec<f32> {
    (0..d / 2).map(|j| 10_000f32.powf(-2.0 * j as f32 / d as f32)).collect()
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    vec![turned(s.tokens, s.heads, (s.head_dim, s.head_dim), 1.0, false).into()]
}

#[test]
fn rope_and_back() {
    for (t, heads, r, d, factor) in
        [(1, 1, 2, 2, 1.0f32), (11, 3, 10, 10, 1.0), (40, 2, 64, 64, 1.19), (9, 3, 6, 8, 1.3)]
    {
        for inverse in [false, true] {
            let x = exactly(1, t * heads * d);
            let turn = |e: usize| {
                let (token, c) = (e / (heads * d), e % d);
                // The angle as it is in f32: sines and cosines are of that.
                if c >= r {
                    return x[e];
                }
                let angle = f64::from((token * 37) as f32 * frequencies(r)[c % (r / 2)]);
                let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
                let turned =
                    if c < r / 2 { x[e] * cos - x[e + r / 2] * sin } else { x[e] * cos + x[e - r / 2] * sin };
                f64::from(factor) * turned
            };
            let case = turned(t, heads, (r, d), factor, inverse);
            follows(&case, &[(0..x.len()).map(turn).collect()]);
            parity(case);
        }
    }
}
