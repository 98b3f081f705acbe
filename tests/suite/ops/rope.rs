//! The rotary position embedding.

use super::*;

pub fn turned(t: usize, heads: usize, d: usize, inverse: bool) -> Case {
    Case::new(format!("rope {t} tokens, {heads} heads of {d}"), move |on| {
        let positions = on.indices((0..t as u32).map(|i| i * 37));
        let inv_freq = on.given(&frequencies(d), 1, d / 2);
        let x = on.view(1, (t, heads * d), 5, on.be.compute_dtype());
        Prepared::new([("x", x)], move |[x], run| {
            run(Rope { x, positions: &positions, inv_freq: inv_freq.mat(), heads, inverse }.into())
        })
    })
}

fn frequencies(d: usize) -> Vec<f32> {
    (0..d / 2).map(|j| 10_000f32.powf(-2.0 * j as f32 / d as f32)).collect()
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    vec![turned(s.tokens, s.heads, s.head_dim, false).into()]
}

#[test]
fn rope_and_back() {
    for (t, heads, d) in [(1, 1, 2), (11, 3, 10), (40, 2, 64)] {
        for inverse in [false, true] {
            let x = exactly(1, t * heads * d);
            let turn = |e: usize| {
                let (token, c) = (e / (heads * d), e % d);
                // The angle as it is in f32: sines and cosines are of that.
                let angle = f64::from((token * 37) as f32 * frequencies(d)[c % (d / 2)]);
                let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
                if c < d / 2 { x[e] * cos - x[e + d / 2] * sin } else { x[e] * cos + x[e - d / 2] * sin }
            };
            let case = turned(t, heads, d, inverse);
            follows(&case, &[(0..x.len()).map(turn).collect()]);
            parity(case);
        }
    }
}
