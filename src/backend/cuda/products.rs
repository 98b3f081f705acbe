//! Matrix products: `kernels/matmul.cu`, `kernels/outer.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, tag, view, view_mut, view_or_none};
use super::library::PlainProduct;
use crate::backend::trace::Work;
use crate::backend::{AdaptedLinear, DType, Mat, MatMut, Op, OuterPart, Rounding};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

/// `struct MatmulArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MatmulArguments {
    a0: View,
    b0: View,
    a1: View,
    b1: View,
    c: View,
    bias: View,
    m: i32,
    n: i32,
    k0: i32,
    k1: i32,
    transpose_a: i32,
    transpose_b: i32,
    alpha: f32,
    beta: f32,
    stochastic: i32,
    unused: i32,
    seed: u64,
}

/// `C = beta C + alpha (A0 B0 + A1 B1) + bias`, operands as stored, with their orientation.
pub(super) struct Product<'a> {
    pub alpha: f32,
    pub beta: f32,
    pub a: (Mat<'a>, Op),
    pub b: (Mat<'a>, Op),
    /// A second pair, oriented as the first.
    pub second: Option<(Mat<'a>, Mat<'a>)>,
    pub bias: Option<Mat<'a>>,
    pub rounding: Rounding,
}

fn oriented(m: Mat, op: Op) -> (usize, usize) {
    if op == Op::N { (m.rows, m.cols) } else { (m.cols, m.rows) }
}

impl Cuda {
    /// Launches a product; see [`crate::backend::Backend::matmul`] and `linear`.
    pub(super) fn product(&self, c: &MatMut, p: Product) -> Result<()> {
        let ((m, k0), (kb, n)) = (oriented(p.a.0, p.a.1), oriented(p.b.0, p.b.1));
        assert!((m, n) == c.shape() && k0 == kb, "product of {m} x {k0} and {kb} x {n} into {:?}", c.shape());
        let k1 = p.second.map_or(0, |(a, b)| {
            let (a, b) = (oriented(a, p.a.1), oriented(b, p.b.1));
            assert!(a.0 == m && b.1 == n && a.1 == b.0, "second product of {a:?} and {b:?} into {m} x {n}");
            a.1
        });
        if m == 0 || n == 0 {
            return Ok(());
        }
        let (stochastic, seed) = match p.rounding {
            Rounding::Nearest => (0, 0),
            Rounding::Stochastic(seed) => (1, seed),
        };
        let arguments = MatmulArguments {
            a0: view(p.a.0),
            b0: view(p.b.0),
            a1: view_or_none(p.second.map(|s| s.0)),
            b1: view_or_none(p.second.map(|s| s.1)),
            c: view_mut(c),
            bias: view_or_none(p.bias),
            m: m as i32,
            n: n as i32,
            k0: k0 as i32,
            k1: k1 as i32,
            transpose_a: i32::from(p.a.1 == Op::T),
            transpose_b: i32::from(p.b.1 == Op::T),
            alpha: p.alpha,
            beta: p.beta,
            stochastic,
            unused: 0,
            seed,
        };
        self.launch_product(arguments, &p, c.dtype)
    }

    fn launch_product(&self, arguments: MatmulArguments, p: &Product, c: DType) -> Result<()> {
        let (m, n) = (arguments.m as usize, arguments.n as usize);
        let operands = [Some(p.a.0), Some(p.b.0), p.second.map(|s| s.0), p.second.map(|s| s.1)];
        let same = |x: Option<Mat>, first: Mat| x.is_none_or(|x| x.dtype == first.dtype);
        assert!(
            same(operands[2], p.a.0) && same(operands[3], p.b.0),
            "the two products have different types"
        );
        let inner = (arguments.k0 + arguments.k1) as usize;
        let work = Work::product((m, n, inner), p.a.0.dtype, p.b.0.dtype, c, p.beta != 0.0);
        let fast = operands.iter().flatten().all(|x| x.dtype == DType::BF16 && view(*x).aligned(x.dtype));
        let plain = p.second.is_none() && p.bias.is_none() && arguments.stochastic == 0;
        if fast && plain && self.driver.has_library() && self.library_product(&arguments, c, work)? {
            return Ok(());
        }
        if fast && arguments.stochastic == 0 {
            let letter = |op| if op == Op::N { "n" } else { "t" };
            let name = format!("matmul_tc_{}{}_{}", letter(p.a.1), letter(p.b.1), tag(c));
            let shape = Shape::line(m.div_ceil(128) * n.div_ceil(128), 256).shared(TILE_SHARED[1]);
            return self.launch(&name, shape, &arguments, work);
        }
        let name = format!("matmul_plain_{}_{}_{}", tag(p.a.0.dtype), tag(p.b.0.dtype), tag(c));
        let shape = Shape::line(m.div_ceil(64) * n.div_ceil(64), 256).shared(PLAIN_SHARED);
        self.launch(&name, shape, &arguments, work)
    }

    /// The product by a library, if there is one that does it.
    fn library_product(&self, a: &MatmulArguments, c: DType, work: Work) -> Result<bool> {
        let product = PlainProduct {
            m: a.m as usize,
            n: a.n as usize,
            k: a.k0 as usize,
            transpose_a: a.transpose_a != 0,
            transpose_b: a.transpose_b != 0,
            ld: [a.a0.ld as usize, a.b0.ld as usize, a.c.ld as usize],
            c,
        };
        let name = format!("cublaslt_{}", tag(c));
        let matrices = [a.a0.data, a.b0.data, a.c.data];
        let start = || self.driver.plain_product(&product, (a.alpha, a.beta), matrices);
        self.recorder.run(self.driver.as_ref(), (&name, 0), work, start)
    }

    /// See [`crate::backend::Backend::matmul`].
    pub(super) fn matmul(
        &self,
        c: MatMut,
        beta: f32,
        alpha: f32,
        (a, op_a): (Mat, Op),
        (b, op_b): (Mat, Op),
    ) -> Result<()> {
        let rounding = Rounding::Nearest;
        self.product(
            &c,
            Product { alpha, beta, a: (a, op_a), b: (b, op_b), second: None, bias: None, rounding },
        )
    }

    /// See [`crate::backend::Backend::linear`].
    pub(super) fn linear(&self, layer: &AdaptedLinear, x: Mat, h: Option<MatMut>, y: MatMut) -> Result<()> {
        let bias = layer.bias.as_ref().map(|b| b.mat());
        let (a, b, rounding) = ((x, Op::N), (layer.weight.mat(), Op::T), Rounding::Nearest);
        let base = Product { alpha: 1.0, beta: 0.0, a, b, second: None, bias, rounding };
        match (&layer.branch, h) {
            (Some(branch), Some(mut h)) => {
                self.matmul(h.reborrow(), 0.0, 1.0, (x, Op::N), (branch.a.mat(), Op::T))?;
                self.product(&y, Product { second: Some((h.as_mat(), branch.b.mat())), ..base })
            }
            (None, None) => self.product(&y, base),
            _ => panic!("linear: h goes with a branch"),
        }
    }

    /// See [`crate::backend::Backend::linear_input_gradient`].
    pub(super) fn linear_input_gradient(
        &self,
        layer: &AdaptedLinear,
        dy: Mat,
        z: Option<MatMut>,
        dx: MatMut,
        accumulate: bool,
    ) -> Result<()> {
        let beta = if accumulate { 1.0 } else { 0.0 };
        let (a, b, rounding) = ((dy, Op::N), (layer.weight.mat(), Op::N), Rounding::Nearest);
        let base = Product { alpha: 1.0, beta, a, b, second: None, bias: None, rounding };
        match (&layer.branch, z) {
            (Some(branch), Some(mut z)) => {
                self.matmul(z.reborrow(), 0.0, 1.0, (dy, Op::N), (branch.b.mat(), Op::N))?;
                self.product(&dx, Product { second: Some((z.as_mat(), branch.a.mat())), ..base })
            }
            (None, None) => self.product(&dx, base),
            _ => panic!("linear_input_gradient: z goes with a branch"),
        }
    }
}

// Shared memory of a block, as `kernels/matmul_tile.cuh` works it out: tensor cores with 64 and 128 columns.
const TILE_SHARED: [usize; 2] = [3 * 32 * 2 * (128 + 64), 3 * 32 * 2 * (128 + 128)];
const PLAIN_SHARED: usize = 2 * 16 * 68 * 4;

// ---- the task gradient ----------------------------------------------------------------------

const PARTS: usize = 32;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Part {
    row0: i32,
    rows: i32,
    col0: i32,
    cols: i32,
    to: i32,
    scale: f32,
}

/// `struct OuterArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct OuterArguments {
    y: View,
    x: View,
    out: View,
    splits: i32,
    parts: i32,
    part: [Part; PARTS],
}

/// `struct OuterSumArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct OuterSumArguments {
    partial: View,
    out: View,
    splits: i32,
    parts: i32,
    part: [Part; PARTS],
}

/// How many of `parts` may go into one launch: the longest run from the start whose columns are disjoint.
fn disjoint(parts: &[OuterPart]) -> usize {
    let columns = |p: &OuterPart| p.to..p.to + p.columns.len();
    let meets =
        |p: &OuterPart, q: &OuterPart| columns(p).start < columns(q).end && columns(q).start < columns(p).end;
    let clash = (0..parts.len()).find(|&i| parts[..i].iter().any(|p| meets(p, &parts[i])));
    clash.unwrap_or(parts.len()).min(PARTS)
}

impl Cuda {
    /// See [`crate::backend::Backend::outer`].
    pub(super) fn outer(&self, y: Mat, x: Mat, parts: &[OuterPart], out: MatMut) -> Result<()> {
        let real = |p: &&OuterPart| !p.rows.is_empty() && !p.columns.is_empty();
        let parts: Vec<OuterPart> = parts.iter().filter(real).cloned().collect();
        for p in &parts {
            assert!(p.rows.end <= y.rows.min(x.rows) && p.columns.end <= x.cols, "outer: {p:?}");
            assert!(out.rows == y.cols && p.to + p.columns.len() <= out.cols, "outer: {p:?}");
        }
        let mut rest = &parts[..];
        while !rest.is_empty() && y.cols > 0 {
            let (now, later) = rest.split_at(disjoint(rest));
            self.outer_launch(y, x, now, &out)?;
            rest = later;
        }
        Ok(())
    }

    fn outer_launch(&self, y: Mat, x: Mat, parts: &[OuterPart], out: &MatMut) -> Result<()> {
        let aligned = parts.iter().all(|p| p.columns.start.is_multiple_of(8));
        let both = y.dtype == DType::BF16 && x.dtype == DType::BF16;
        let fast = both && aligned && view(y).aligned(y.dtype) && view(x).aligned(x.dtype);
        let (tile_m, shared) = if fast { (128, TILE_SHARED[0]) } else { (64, PLAIN_SHARED) };
        let (tiles_m, tiles_n): (usize, usize) =
            (y.cols.div_ceil(tile_m), parts.iter().map(|p| p.columns.len().div_ceil(64)).sum());
        let longest = parts.iter().map(|p| p.rows.len()).max().unwrap_or(0);
        // Enough blocks for the device, but runs of at least 256 tokens.
        let splits = (self.driver.wide() / (tiles_m * tiles_n)).clamp(1, longest.div_ceil(256));
        let partial = if splits > 1 { Some(self.scratch(splits * y.cols, out.cols)?) } else { None };
        let mut part = [Part::zeroed(); PARTS];
        for (to, p) in part.iter_mut().zip(parts) {
            *to = Part {
                row0: p.rows.start as i32,
                rows: p.rows.len() as i32,
                col0: p.columns.start as i32,
                cols: p.columns.len() as i32,
                to: p.to as i32,
                scale: p.scale,
            };
        }
        let target = partial.as_ref().map_or(view_mut(out), |t| view(t.mat()));
        let (splits_i, parts_i) = (splits as i32, parts.len() as i32);
        let arguments =
            OuterArguments { y: view(y), x: view(x), out: target, splits: splits_i, parts: parts_i, part };
        let shape = Shape::line(tiles_m, 256).grid_yz(tiles_n, splits).shared(shared);
        let name =
            if fast { "outer_tc".into() } else { format!("outer_plain_{}_{}", tag(y.dtype), tag(x.dtype)) };
        let product = |p: &OuterPart| {
            let shape = (y.cols, p.columns.len(), p.rows.len());
            Work::product(shape, y.dtype, x.dtype, DType::F32, true)
        };
        let work = parts.iter().map(product).fold(Work::default(), |a, b| a + b);
        self.launch(&name, shape, &arguments, work)?;
        let Some(partial) = partial else { return Ok(()) };
        let (partial, out) = (view(partial.mat()), view_mut(out));
        let sum = OuterSumArguments { partial, out, splits: splits_i, parts: parts_i, part };
        let written: usize = parts.iter().map(|p| y.cols * p.columns.len()).sum();
        let work = Work::new((4 * written * (splits + 2)) as u64, (written * splits) as u64);
        self.launch("outer_sum", Shape::cover(out.rows as usize * out.cols as usize), &sum, work)
    }
}
