//! Operations that go row by row: `kernels/{elementwise,rows,rmsnorm,rope,activation,column_sums}.cu`.

use super::Cuda;
use super::driver::Shape;
use super::launch::{View, address, chunks, tag, view, view_mut, view_or_none};
use crate::backend::trace::{Work, bytes, bytes_or_none};
use crate::backend::{Activation, Indices, Mat, MatMut, RowGroups};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CombineArguments {
    x: View,
    y: View,
    alpha: f32,
    beta: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FillArguments {
    y: View,
    value: f32,
    unused: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GatherArguments {
    table: View,
    y: View,
    ids: u64,
    scale: f32,
    unused: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ScatterArguments {
    from: View,
    to: View,
    rows: u64,
    offsets: u64,
    sources: u64,
    groups: i32,
    first_row: i32,
    scale: f32,
    unused: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RmsnormArguments {
    x: View,
    residual: View,
    sum: View,
    w: View,
    y: View,
    inv_rms: View,
    eps: f32,
    unused: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RmsnormBackwardArguments {
    s: View,
    w: View,
    inv_rms: View,
    dy: View,
    dx: View,
    accumulate: i32,
    unused: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RopeArguments {
    x: View,
    inv_freq: View,
    positions: u64,
    heads: i32,
    sign: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ActivationArguments {
    gate: View,
    up: View,
    dy: View,
    y: View,
    dup: View,
    kind: i32,
    unused: i32,
}

const SEGMENTS: usize = 64;

/// Rows `first .. end`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Segment {
    first: i32,
    end: i32,
}

/// Segments as kernels take them, at most 64; the others are (0, 0).
pub(super) fn segments(ranges: &[Range<usize>]) -> [Segment; SEGMENTS] {
    let mut list = [Segment::zeroed(); SEGMENTS];
    for (to, range) in list.iter_mut().zip(ranges) {
        *to = Segment { first: range.start as i32, end: range.end as i32 };
    }
    list
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ColumnSumsArguments {
    dy: View,
    x: View,
    inv_rms: View,
    out: View,
    segment: [Segment; SEGMENTS],
}

/// A row is a warp's up to this many columns, a whole block's beyond.
const WARP_COLUMNS: usize = 1024;

/// Blocks for kernels that reduce rows (`row_sum` of `kernels/common.cuh`).
fn row_blocks(rows: usize, cols: usize) -> Shape {
    let (block, per_block) = if cols <= WARP_COLUMNS { ([32, 8, 1], 8) } else { ([256, 1, 1], 1) };
    Shape { block, ..Shape::line(rows.div_ceil(per_block), 256) }.shared(128)
}

impl Cuda {
    /// `y = alpha x + beta y`, any types; y is not read when beta is 0.
    pub(super) fn combine(&self, alpha: f32, x: Mat, beta: f32, y: &MatMut) -> Result<()> {
        assert_eq!(x.shape(), y.shape(), "combine");
        let arguments = CombineArguments { x: view(x), y: view_mut(y), alpha, beta };
        if x.rows == 0 || x.cols == 0 {
            return Ok(());
        }
        let work = Work::new(bytes(x) + bytes(y.as_mat()) * if beta == 0.0 { 1 } else { 2 }, 0);
        let name = format!("combine_{}_{}", tag(x.dtype), tag(y.dtype));
        self.launch(&name, chunks(&arguments.y), &arguments, work)
    }

    /// See [`crate::backend::Backend::fill`].
    pub(super) fn fill(&self, y: &MatMut, value: f32) -> Result<()> {
        if y.rows == 0 || y.cols == 0 {
            return Ok(());
        }
        let arguments = FillArguments { y: view_mut(y), value, unused: 0.0 };
        let work = Work::new(bytes(y.as_mat()), 0);
        self.launch(&format!("fill_{}", tag(y.dtype)), chunks(&arguments.y), &arguments, work)
    }

    /// See [`crate::backend::Backend::embed`] (and `gather_rows`, with scale 1).
    pub(super) fn gather(&self, table: Mat, ids: &Indices, scale: f32, y: MatMut) -> Result<()> {
        assert_eq!((ids.len(), table.cols), y.shape(), "gather");
        assert_eq!(table.dtype, y.dtype, "gather");
        debug_assert!(ids.host.iter().all(|&i| (i as usize) < table.rows), "gather: a row beyond the table");
        if y.rows == 0 || y.cols == 0 {
            return Ok(());
        }
        let arguments =
            GatherArguments { table: view(table), y: view_mut(&y), ids: address(ids), scale, unused: 0.0 };
        let work = Work::new(2 * bytes(y.as_mat()) + 4 * ids.len() as u64, 0);
        self.launch(&format!("gather_{}", tag(y.dtype)), chunks(&arguments.y), &arguments, work)
    }

    /// See [`crate::backend::Backend::scatter_add_rows`].
    pub(super) fn scatter_add(
        &self,
        from: Mat,
        groups: &RowGroups,
        scale: f32,
        first_row: usize,
        to: MatMut,
    ) -> Result<()> {
        assert_eq!(from.cols, to.cols, "scatter_add_rows");
        if groups.rows.is_empty() || to.cols == 0 {
            return Ok(());
        }
        let arguments = ScatterArguments {
            from: view(from),
            to: view_mut(&to),
            rows: address(&groups.rows),
            offsets: address(&groups.offsets),
            sources: address(&groups.sources),
            groups: groups.rows.len() as i32,
            first_row: first_row as i32,
            scale,
            unused: 0.0,
        };
        let shape = Shape::cover(to.cols.div_ceil(8)).grid_yz(groups.rows.len().min(65_535), 1);
        let (sources, targets) = ((groups.sources.len() * to.cols) as u64, groups.rows.len() * to.cols);
        let moved = sources * from.dtype.bytes() as u64 + 2 * (targets * to.dtype.bytes()) as u64;
        let name = format!("scatter_{}_{}", tag(from.dtype), tag(to.dtype));
        self.launch(&name, shape, &arguments, Work::new(moved, sources))
    }

    /// See [`crate::backend::Backend::rmsnorm`].
    pub(super) fn rmsnorm(
        &self,
        x: Mat,
        residual: Option<(Mat, MatMut)>,
        w: Mat,
        eps: f32,
        y: MatMut,
        inv_rms: MatMut,
    ) -> Result<()> {
        assert!(x.shape() == y.shape() && w.cols == x.cols && inv_rms.rows == x.rows, "rmsnorm");
        if x.rows == 0 {
            return Ok(());
        }
        let (residual, sum) = match &residual {
            Some((r, sum)) => (view(*r), view_mut(sum)),
            None => (View::NONE, View::NONE),
        };
        let (w, inv_rms) = (view(w), view_mut(&inv_rms));
        let arguments =
            RmsnormArguments { x: view(x), residual, sum, w, y: view_mut(&y), inv_rms, eps, unused: 0.0 };
        let streams = if arguments.residual.data == 0 { 2 } else { 4 };
        let work = Work::new(streams * bytes(x) + 4 * x.rows as u64, 4 * (x.rows * x.cols) as u64);
        self.launch(&format!("rmsnorm_{}", tag(x.dtype)), row_blocks(x.rows, x.cols), &arguments, work)
    }

    /// See [`crate::backend::Backend::rmsnorm_backward`].
    pub(super) fn rmsnorm_backward(
        &self,
        s: Mat,
        w: Mat,
        inv_rms: Mat,
        dy: Mat,
        dx: MatMut,
        accumulate: bool,
        dw: Option<(&[Range<usize>], MatMut)>,
    ) -> Result<()> {
        assert!(s.shape() == dy.shape() && s.shape() == dx.shape() && w.cols == s.cols, "rmsnorm_backward");
        if s.rows == 0 {
            return Ok(());
        }
        // The weight's gradient first: dx may be dy's own memory.
        if let Some((ranges, dw)) = dw {
            self.sum_columns(dy, Some((s, inv_rms)), ranges, dw)?;
        }
        let arguments = RmsnormBackwardArguments {
            s: view(s),
            w: view(w),
            inv_rms: view(inv_rms),
            dy: view(dy),
            dx: view_mut(&dx),
            accumulate: i32::from(accumulate),
            unused: 0,
        };
        let streams = if accumulate { 4 } else { 3 };
        let work = Work::new(streams * bytes(s) + 4 * s.rows as u64, 8 * (s.rows * s.cols) as u64);
        let name = format!("rmsnorm_backward_{}", tag(s.dtype));
        self.launch(&name, row_blocks(s.rows, s.cols), &arguments, work)
    }

    /// See [`crate::backend::Backend::rope`].
    pub(super) fn rope(
        &self,
        x: MatMut,
        positions: &Indices,
        inv_freq: Mat,
        heads: usize,
        inverse: bool,
    ) -> Result<()> {
        assert_eq!(x.cols, heads * 2 * inv_freq.cols, "rope");
        assert_eq!(x.rows, positions.len(), "rope");
        if x.rows == 0 {
            return Ok(());
        }
        let arguments = RopeArguments {
            x: view_mut(&x),
            inv_freq: view(inv_freq),
            positions: address(positions),
            heads: heads as i32,
            sign: if inverse { -1.0 } else { 1.0 },
        };
        let work = Work::new(2 * bytes(x.as_mat()), 3 * (x.rows * x.cols) as u64);
        let shape = Shape::cover(x.rows * inv_freq.cols);
        self.launch(&format!("rope_{}", tag(x.dtype)), shape, &arguments, work)
    }

    /// See [`crate::backend::Backend::activation`].
    pub(super) fn activation(&self, kind: Activation, gate: Mat, up: Option<Mat>, y: MatMut) -> Result<()> {
        assert!(gate.shape() == y.shape() && up.is_none_or(|u| u.shape() == gate.shape()), "activation");
        let arguments = activation_arguments(kind, gate, up, None, &y, None);
        if y.rows == 0 || y.cols == 0 {
            return Ok(());
        }
        let work = Work::new(2 * bytes(gate) + bytes_or_none(up), 5 * (gate.rows * gate.cols) as u64);
        self.launch(&format!("activation_{}", tag(gate.dtype)), chunks(&arguments.y), &arguments, work)
    }

    /// See [`crate::backend::Backend::activation_backward`].
    pub(super) fn activation_backward(
        &self,
        kind: Activation,
        gate: Mat,
        up: Option<Mat>,
        dy: Mat,
        dgate: MatMut,
        dup: Option<MatMut>,
    ) -> Result<()> {
        assert!(gate.shape() == dy.shape() && dgate.shape() == dy.shape(), "activation_backward");
        let arguments = activation_arguments(kind, gate, up, Some(dy), &dgate, dup.as_ref());
        if dy.rows == 0 || dy.cols == 0 {
            return Ok(());
        }
        let work = Work::new(3 * bytes(gate) + 2 * bytes_or_none(up), 8 * (gate.rows * gate.cols) as u64);
        let name = format!("activation_backward_{}", tag(gate.dtype));
        self.launch(&name, chunks(&arguments.y), &arguments, work)
    }

    /// Adds the column sums of every segment of dy, or of `x * inv_rms * dy`, to a row of `out` each.
    pub(super) fn sum_columns(
        &self,
        dy: Mat,
        x: Option<(Mat, Mat)>,
        ranges: &[Range<usize>],
        mut out: MatMut,
    ) -> Result<()> {
        assert!(out.cols == dy.cols && out.rows >= ranges.len(), "column_sums");
        for (i, ranges) in ranges.chunks(SEGMENTS).enumerate() {
            let rows = out.reborrow().row_range(i * SEGMENTS..i * SEGMENTS + ranges.len());
            let arguments = ColumnSumsArguments {
                dy: view(dy),
                x: view_or_none(x.map(|x| x.0)),
                inv_rms: view_or_none(x.map(|x| x.1)),
                out: view_mut(&rows),
                segment: segments(ranges),
            };
            let grid = Shape::line(dy.cols.div_ceil(32), 256).grid_yz(ranges.len(), 1);
            let shape = Shape { block: [32, 8, 1], ..grid }.shared(1024);
            if dy.cols > 0 {
                let summed: usize = ranges.iter().map(|r| r.len() * dy.cols).sum();
                let each = dy.dtype.bytes() * if x.is_some() { 2 } else { 1 };
                let work = Work::new((summed * each) as u64, summed as u64);
                self.launch(&format!("column_sums_{}", tag(dy.dtype)), shape, &arguments, work)?;
            }
        }
        Ok(())
    }
}

fn activation_arguments(
    kind: Activation,
    gate: Mat,
    up: Option<Mat>,
    dy: Option<Mat>,
    y: &MatMut,
    dup: Option<&MatMut>,
) -> ActivationArguments {
    let kind = match kind {
        Activation::Silu => 0,
        Activation::Relu => 1,
        Activation::GeluTanh => 2,
    };
    let dup = dup.map_or(View::NONE, view_mut);
    ActivationArguments {
        gate: view(gate),
        up: view_or_none(up),
        dy: view_or_none(dy),
        y: view_mut(y),
        dup,
        kind,
        unused: 0,
    }
}
