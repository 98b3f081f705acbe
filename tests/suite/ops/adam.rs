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
        held: 0.0,
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
            let update = AdamUpdate { x, g: g.mat(), held: None, m, v, blocks, copy, change };
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
                AdamUpdate { x, g: g.mat(), held: None, m, v, blocks, copy, change: None }
            });
            let updates = updates.collect();
            run(Adam { updates, factors: Some(factors.mat()), squares: Some(next()) }.into())
        })
    })
}

const FACTORS: [f32; 5] = [0.7, 0.5, 1.5, 0.25, 2.0];
const HELD: [f32; 3] = [0.6, 1.9, 0.0];

/// One layer of two tasks as in [`of_layers`], with a gradient that is held beside theirs.
fn with_held(m: usize, r: usize, own: usize) -> Case {
    Case::new(format!("adam with a held gradient {m}x{}", r + 2 * own), move |on| {
        let n = r + 2 * own;
        let (g, held) = (on.f32(2, m, 2 * (r + own)), on.view(5, (m, n), 3, DType::F32));
        let factors = on.given(&FACTORS, 1, 5);
        let outputs = [
            ("x", on.added_to_f32(1, m, n)),
            ("m", on.added_to_f32(3, m, n)),
            ("v", on.squares(4, m, n)),
            ("squared norm of the change", on.unwritten_f32(1, 1)),
        ];
        Prepared::new(outputs, move |[x, m, v, squares], run| {
            let blocks = blocks_of_tasks(r, own);
            let (held, copy) = (Some(held.mat()), None);
            let updates = vec![AdamUpdate { x, g: g.mat(), held, m, v, blocks, copy, change: None }];
            run(Adam { updates, factors: Some(factors.mat()), squares: Some(squares) }.into())
        })
    })
}

/// A shared block, in which two tasks are summed, and a block of each task.
fn blocks_of_tasks(r: usize, own: usize) -> Vec<AdamBlock> {
    let shared = AdamBlock { terms: 2, stride: r, held: HELD[0], ..block(0..r, 0.01) };
    let task = |t: usize| AdamBlock {
        from: 2 * r + t * own,
        gate: Some(factors::gate(2, t)),
        held: HELD[1 + t],
        ..block(r + t * own..r + (t + 1) * own, 0.1)
    };
    vec![shared, task(0), task(1)]
}

#[test]
fn adam_with_a_held_gradient_by_its_formula() {
    for (m, r, own) in [(1, 1, 1), (7, 3, 2), (33, 5, 6)] {
        let (n, width) = (r + 2 * own, 2 * (r + own));
        let (mut x, g, mut first) = (exactly(1, m * n), exactly(2, m * width), exactly(3, m * n));
        let (held, mut second) = (exactly(5, m * n), exactly(4, m * n));
        second.iter_mut().for_each(|v| *v *= *v);
        let [clip, a, b, gate_a, gate_b] = FACTORS.map(f64::from);
        let mut square = 0.0;
        for (i, c) in (0..m).flat_map(|i| (0..n).map(move |c| (i, c))) {
            let (at, of) = (i * n + c, |column: usize| g[i * width + column]);
            let which = if c < r { 0 } else { 1 + (c - r) / own };
            let (gradient, rate) = match which {
                0 => (a * of(c) + b * of(r + c), 0.01),
                1 => (of(2 * r + c - r), 0.1 * gate_a),
                _ => (of(2 * r + c - r), 0.1 * gate_b),
            };
            let gradient = clip * 0.5 * (gradient + f64::from(HELD[which]) * held[at]);
            first[at] = 0.9 * first[at] + 0.1 * gradient;
            second[at] = 0.99 * second[at] + 0.01 * gradient * gradient;
            let new = (0.99 * x[at] - rate * first[at] / (second[at].sqrt() / 0.3 + 1e-6)) * 0.98;
            square += (new - x[at]).powi(2);
            x[at] = new;
        }
        let case = with_held(m, r, own);
        follows(&case, &[x, first, second, vec![square]]);
        parity(case);
    }
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
