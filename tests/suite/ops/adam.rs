//! Adam on many matrices at once.

use super::*;
use std::ops::Range;

fn block(columns: Range<usize>, step: f32) -> AdamBlock {
    AdamBlock {
        from: columns.start,
        columns,
        terms: 1,
        stride: 0,
        gate: None,
        beta1: 0.9,
        beta2: 0.99,
        step,
        sqrt_correction2: 0.3,
        eps: 1e-6,
        keep_before: 0.99,
        keep_after: 0.98,
        grad_scale: 0.5,
    }
}

/// One matrix, of which the last quarter of the columns is left alone.
pub fn one(m: usize, r: usize) -> Case {
    Case::new(format!("adam {m}x{r}"), move |on| {
        let g = on.f32(2, m, r);
        let outputs = [
            ("x", on.added_to_f32(1, m, r)),
            ("m", on.added_to_f32(3, m, r)),
            ("v", on.squares(4, m, r)),
            ("change", on.unwritten_f32(m, r)),
            ("copy", on.unwritten(m, r)),
        ];
        let blocks = [block(0..r / 2, 0.01), block(r / 2..r - r / 4, 0.1)];
        Prepared::new(outputs, move |[x, m, v, change, copy], run| {
            let (blocks, copy, change) = (blocks.to_vec(), Some((copy, 0.5)), Some(change));
            let update = AdamUpdate { x, g: g.mat(), m, v, blocks, copy, change };
            run(Adam { updates: vec![update], factors: None, squares: None }.into())
        })
    })
}

/// Layers of any shapes (M, shared rank, rank of each of two tasks) in one call: gradients combined from the columns of
/// both tasks, gates and clipping from the device, squared norms of the changes.
pub fn of_layers(shapes: Vec<(usize, usize, usize)>, clip: f32) -> Case {
    let (m, r, own) = shapes[0];
    Case::new(format!("adam of {} layers {m}x{}", shapes.len(), r + 2 * own), move |on| {
        let factors = on.given(&[clip, 0.5, 1.5, 0.25, 2.0], 1, 5);
        let (mut gradients, mut outputs) = (Vec::new(), Vec::new());
        for (&(m, r, own), seed) in shapes.iter().zip((0..).step_by(10)) {
            let n = r + 2 * own;
            gradients.push(on.f32(seed + 2, m, 2 * (r + own)));
            outputs.extend([
                ("x", on.added_to_f32(seed + 1, m, n)),
                ("m", on.added_to_f32(seed + 3, m, n)),
                ("v", on.squares(seed + 4, m, n)),
                ("copy", on.added_to(seed + 5, m, n)),
            ]);
        }
        outputs.push(("squared norms of the changes", on.unwritten_f32(1, shapes.len())));
        let shapes = shapes.clone();
        Prepared::many(outputs, move |outputs, run| {
            let mut outputs = outputs.into_iter();
            let mut next = || outputs.next().expect("four a layer, and the norms");
            let layers = gradients.iter().zip(&shapes);
            let updates = layers.map(|(g, &(_, r, own))| {
                let shared = AdamBlock { terms: 2, stride: r, ..block(0..r, 0.01) };
                let task = |t: usize| AdamBlock {
                    from: 2 * r + t * own,
                    gate: Some(factors::gate(2, t)),
                    ..block(r + t * own..r + (t + 1) * own, 0.1)
                };
                let blocks = vec![shared, task(0), task(1)];
                let (x, m, v, copy) = (next(), next(), next(), Some((next(), 1.0)));
                AdamUpdate { x, g: g.mat(), m, v, blocks, copy, change: None }
            });
            let updates = updates.collect();
            run(Adam { updates, factors: Some(factors.mat()), squares: Some(next()) }.into())
        })
    })
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let layers = |m| of_layers(vec![(m, s.rank / 2, s.rank / 4); s.layers], 1.0).into();
    let each = |(name, m, _)| one(m, s.rank).named(format!("adam {name} {m}x{}", s.rank)).into();
    s.linear_layers().into_iter().map(each).chain([layers(s.hidden)]).collect()
}

#[test]
fn dots_and_adam() {
    for (m, r) in [(1, 1), (33, 7), (90, 64)] {
        parity(dots::of_pairs(34, m, r));
        parity(one(m, r));
    }
}

/// More matrices than one launch takes; and a step that is skipped.
#[test]
fn adam_of_many_matrices() {
    let mut shapes = vec![(1, 1, 1), (70, 5, 3), (300, 16, 8), (2, 4, 4), (129, 7, 1)];
    shapes.extend((0..15).map(|i| (3 + i, 4, 2)));
    for clip in [0.7, f32::NAN] {
        parity(of_layers(shapes.clone(), clip));
    }
}
