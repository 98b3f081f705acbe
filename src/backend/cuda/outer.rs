//! The task gradient: `kernels/outer.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, tag, view, view_mut};
use super::matmul::{PLAIN_SHARED, TILE_SHARED};
use crate::backend::trace::Work;
use crate::backend::{ColumnPair, DType, Mat, MatMut, OuterPart, task_gradient_in_steps};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

const PARTS: usize = 32;
const PAIRS: usize = 32;
/// Columns of a matrix whose products one block may take for a tile of rows.
const NARROW: usize = 2048;

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

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Pair {
    a: i32,
    b: i32,
    width: i32,
}

/// `struct OuterArguments`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct OuterArguments {
    y: View,
    x: View,
    out: View,
    partial: View,
    tickets: u64,
    sums: u64,
    products: u64,
    splits: i32,
    parts: i32,
    pairs: i32,
    fresh: i32,
    uncovered: i32,
    unused: i32,
    part: [Part; PARTS],
    pair: [Pair; PAIRS],
}

/// What a launch does beside adding its parts.
#[derive(Default)]
struct After<'a> {
    fresh: bool,
    pairs: &'a [ColumnPair],
    /// Address of the products; 0: none.
    products: u64,
}

/// How many of `parts` may go into one launch: the longest run from the start whose columns are disjoint.
fn disjoint(parts: &[OuterPart]) -> usize {
    let columns = |p: &OuterPart| p.to..p.to + p.columns.len();
    let meets =
        |p: &OuterPart, q: &OuterPart| columns(p).start < columns(q).end && columns(q).start < columns(p).end;
    let clash = (0..parts.len()).find(|&i| parts[..i].iter().any(|p| meets(p, &parts[i])));
    clash.unwrap_or(parts.len()).min(PARTS)
}

/// The parts that add something.
fn real(parts: &[OuterPart]) -> Vec<OuterPart> {
    parts.iter().filter(|p| !p.rows.is_empty() && !p.columns.is_empty()).cloned().collect()
}

impl Cuda {
    /// See [`crate::backend::Backend::outer`].
    pub(super) fn outer(&self, y: Mat, x: Mat, parts: &[OuterPart], out: MatMut) -> Result<()> {
        let parts = real(parts);
        let mut rest = &parts[..];
        while !rest.is_empty() && y.cols > 0 {
            let (now, later) = rest.split_at(disjoint(rest));
            self.outer_launch(y, x, now, &out, After::default())?;
            rest = later;
        }
        Ok(())
    }

    /// See [`crate::backend::Backend::task_gradient`]: one launch, unless there are many tasks or `out` is wide.
    pub(super) fn task_gradient(
        &self,
        (y, x): (Mat, Mat),
        parts: &[OuterPart],
        out: MatMut,
        fresh: bool,
        pairs: &[ColumnPair],
        products: MatMut,
    ) -> Result<()> {
        let some = real(parts);
        let fits = disjoint(&some) == some.len() && !some.is_empty() && pairs.len() <= PAIRS;
        if !fits || y.cols == 0 || out.cols > NARROW {
            return task_gradient_in_steps(self, (y, x), parts, out, fresh, pairs, products);
        }
        assert!(products.rows == 1 && products.cols == pairs.len(), "task_gradient: products");
        let wanted = if pairs.is_empty() { 0 } else { view_mut(&products).data };
        self.outer_launch(y, x, &some, &out, After { fresh, pairs, products: wanted })
    }

    fn outer_launch(&self, y: Mat, x: Mat, parts: &[OuterPart], out: &MatMut, after: After) -> Result<()> {
        for p in parts {
            assert!(p.rows.end <= y.rows.min(x.rows) && p.columns.end <= x.cols, "outer: {p:?}");
            assert!(out.rows == y.cols && p.to + p.columns.len() <= out.cols, "outer: {p:?}");
        }
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
        let sums = self.arena.take((tiles_m * after.pairs.len() * 8).max(8))?;
        let covered: usize = parts.iter().map(|p| p.columns.len()).sum();
        let meets = splits > 1 || after.fresh || after.products != 0;
        let mut arguments = OuterArguments {
            y: view(y),
            x: view(x),
            out: view_mut(out),
            partial: partial.as_ref().map_or(View::NONE, |t| view(t.mat())),
            tickets: if meets { self.tickets(tiles_m * tiles_n + tiles_m + 1)? } else { 0 },
            sums: sums.address,
            products: after.products,
            splits: splits as i32,
            parts: parts.len() as i32,
            pairs: after.pairs.len() as i32,
            fresh: i32::from(after.fresh),
            uncovered: i32::from(covered < out.cols),
            ..OuterArguments::zeroed()
        };
        for (to, p) in arguments.part.iter_mut().zip(parts) {
            *to = Part {
                row0: p.rows.start as i32,
                rows: p.rows.len() as i32,
                col0: p.columns.start as i32,
                cols: p.columns.len() as i32,
                to: p.to as i32,
                scale: p.scale,
            };
        }
        for (to, p) in arguments.pair.iter_mut().zip(after.pairs) {
            *to = Pair { a: p.a as i32, b: p.b as i32, width: p.width as i32 };
        }
        let shape = Shape::line(tiles_m, 256).grid_yz(tiles_n, splits).shared(shared);
        let name =
            if fast { "outer_tc".into() } else { format!("outer_plain_{}_{}", tag(y.dtype), tag(x.dtype)) };
        let product = |p: &OuterPart| {
            let shape = (y.cols, p.columns.len(), p.rows.len());
            Work::product(shape, y.dtype, x.dtype, DType::F32, !after.fresh)
        };
        // Runs are written and read once; products read what was written.
        let written = (4 * y.cols * covered) as u64;
        let again = (2 * splits as u64 * u64::from(splits > 1) + u64::from(after.products != 0)) * written;
        let work = parts.iter().map(product).fold(Work::new(again, 0), |a, b| a + b);
        self.launch(&name, shape, &arguments, work)
    }
}
