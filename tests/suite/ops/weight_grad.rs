//! The gradient of weights, task by task.

use super::*;
use std::ops::Range;

fn block(rows: Range<usize>, columns: Range<usize>, to: usize, scale: f32) -> GradBlock {
    GradBlock { rows, columns, to, scale }
}

fn pair(a: usize, b: usize, width: usize) -> ColumnPair {
    ColumnPair { a, b, width }
}

/// A gradient: rows, outputs, inputs, columns of the result; its blocks and pairs.
#[derive(Clone)]
pub struct Gradient {
    pub size: (usize, usize, usize, usize),
    pub blocks: Vec<GradBlock>,
    /// Inner products of blocks of columns, where any are wanted.
    pub pairs: Option<Vec<ColumnPair>>,
    pub write: Write,
}

impl Gradient {
    pub fn case(self, name: impl Into<String>) -> Case {
        let (t, m, n, wide) = self.size;
        Case::new(name, move |on| {
            let compute = on.be.compute_dtype();
            let (dy, x) = (on.view(1, (t, m), 8, compute), on.view(2, (t, n), 8, compute));
            let out = match self.write {
                Write::Replace => on.nan((m, wide), 5, DType::F32),
                Write::Add => on.view(3, (m, wide), 5, DType::F32),
            };
            let products = on.nan((1, self.pairs.as_ref().map_or(0, Vec::len)), 1, DType::F32);
            let this = self.clone();
            Prepared::new([("gradient", out), ("products", products)], move |[out, products], run| {
                let gram = this.pairs.as_ref().map(|pairs| Gram { pairs, products });
                let (blocks, write) = (&this.blocks[..], this.write);
                run(WeightGrad { dy: dy.mat(), x: x.mat(), blocks, out, write, gram }.into())
            })
        })
    }

    /// By the definition.
    fn formula(&self) -> [Vec<f64>; 2] {
        let (t, m, n, wide) = self.size;
        let (dy, x) = (exactly(1, t * m), exactly(2, t * n));
        let mut out = if self.write == Write::Add { exactly(3, m * wide) } else { vec![0.0; m * wide] };
        for b in &self.blocks {
            for (i, (j, to)) in (0..m).flat_map(|i| b.columns.clone().zip(b.to..).map(move |j| (i, j))) {
                let sum: f64 = b.rows.clone().map(|row| dy[row * m + i] * x[row * n + j]).sum();
                out[i * wide + to] += f64::from(b.scale) * sum;
            }
        }
        let product = |p: &ColumnPair| {
            let row = |i: usize| (0..p.width).map(move |c| (i * wide + p.a + c, i * wide + p.b + c));
            (0..m).flat_map(row).map(|(a, b)| out[a] * out[b]).sum::<f64>()
        };
        let products = self.pairs.iter().flatten().map(product).collect();
        [out, products]
    }
}

/// The gradient of a step of two tasks: each task's of the shared subspace beside the other's, then those of their own.
fn of_tasks(t: usize, m: usize, r: usize) -> Gradient {
    let (half, own) = (r / 2, r / 4);
    let of_task = |task: usize| {
        let (rows, columns) = (task * t / 2..(task + 1) * t / 2, half + task * own..half + (task + 1) * own);
        [block(rows.clone(), 0..half, task * half, 1.0), block(rows, columns, r + task * own, 1.0)]
    };
    let pairs = [(0, 0, half), (0, half, half), (half, half, half), (r, r, own), (r + own, r + own, own)];
    Gradient {
        size: (t, m, r, r + half),
        blocks: (0..2).flat_map(of_task).collect(),
        pairs: Some(pairs.map(|(a, b, width)| pair(a, b, width)).into()),
        write: Write::Replace,
    }
}

pub fn at(s: &Sizes) -> Vec<Timed> {
    let one = |(name, m, n)| {
        of_tasks(s.tokens, m, s.rank).case(format!("task gradient {name} {}x{n}->{m}", s.tokens)).into()
    };
    s.linear_layers().into_iter().map(one).collect()
}

#[track_caller]
fn check(gradient: Gradient, name: &str) {
    let case = gradient.clone().case(format!("{name} {:?}", gradient.size));
    follows(&case, &gradient.formula());
    parity(case);
}

/// Subspaces of tasks; overlapping blocks in order; long runs that are split.
#[test]
fn weight_grad_of_parts() {
    let cases = [
        (
            (70, 136, 32),
            vec![block(0..70, 0..16, 0, 1.0), block(0..30, 16..24, 16, 0.5), block(30..70, 24..32, 24, 2.0)],
        ),
        (
            (41, 13, 9),
            vec![block(3..20, 1..9, 1, 1.0), block(20..41, 0..5, 4, -1.0), block(5..5, 0..9, 0, 1.0)],
        ),
        ((1500, 24, 16), vec![block(0..1500, 0..16, 0, 1.0)]),
        (
            (1300, 70, 24),
            vec![block(0..700, 0..8, 0, 1.0), block(700..1300, 8..24, 8, 3.0), block(1..2, 0..24, 0, 1.0)],
        ),
    ];
    for ((t, m, n), blocks) in cases {
        check(Gradient { size: (t, m, n, n), blocks, pairs: None, write: Write::Add }, "weight gradient");
    }
}

/// The task gradient of a step: written afresh or added to, with products of blocks of columns of the result. One tile;
/// runs that are split, columns that no block writes, several tiles of rows; products of columns that no block of this
/// launch touches, and of none.
#[test]
fn task_gradient_and_its_products() {
    let cases = [
        (
            (9, 5, 3, 6),
            vec![block(0..4, 0..3, 0, 1.0), block(4..9, 0..3, 3, 2.0)],
            vec![pair(0, 3, 3), pair(0, 0, 6)],
        ),
        (
            (1300, 150, 24, 40),
            vec![block(0..700, 0..8, 0, 1.0), block(700..1300, 8..24, 24, 0.5)],
            vec![pair(0, 8, 8), pair(24, 24, 16), pair(16, 0, 8)],
        ),
        (
            (600, 300, 32, 64),
            vec![block(0..600, 0..32, 0, 1.0)],
            vec![pair(0, 32, 32), pair(0, 0, 64), pair(32, 32, 1), pair(5, 9, 0)],
        ),
        ((40, 20, 80, 80), vec![block(0..40, 0..80, 0, 1.0)], vec![]),
    ];
    for (size, blocks, pairs) in cases {
        for write in [Write::Replace, Write::Add] {
            let (blocks, pairs) = (blocks.clone(), Some(pairs.clone()));
            check(Gradient { size, blocks, pairs, write }, "task gradient");
        }
    }
}

/// Blocks of the same rows, which a backend may multiply as one: of other factors, over each other, of no columns.
#[test]
fn blocks_of_the_same_rows() {
    let blocks = vec![
        block(0..130, 0..5, 0, 1.0),
        block(0..130, 9..12, 7, -0.5),
        block(0..130, 3..3, 2, 1.0),
        block(0..130, 2..9, 4, 2.0),
        block(130..150, 0..7, 11, 1.0),
        block(130..150, 5..12, 0, 1.5),
    ];
    for write in [Write::Replace, Write::Add] {
        let (size, blocks, pairs) = ((150, 77, 12, 18), blocks.clone(), Some(vec![pair(0, 7, 7)]));
        check(Gradient { size, blocks, pairs, write }, "blocks of the same rows");
        check(Gradient { write, ..of_tasks(140, 70, 32) }, "a gradient of two tasks");
    }
}
