//! The task gradient: `kernels/outer.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, tag, view, view_mut};
use super::matmul::{PLAIN_SHARED, TILE_SHARED};
use crate::backend::trace::Work;
use crate::backend::{DType, Mat, MatMut, OuterPart};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};

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
