//! Sums over segments of rows: `kernels/column_sums.cu`.

use super::Cuda;
use super::abi::{ColumnSumsArguments, Launch, SEGMENTS, segments};
use super::kernels;
use super::launch::{view, view_mut, view_or_none};
use crate::backend::work::Work;
use crate::backend::{ColumnSums, Mat, MatMut};
use crate::error::Result;
use std::ops::Range;

impl Cuda {
    pub(super) fn column_sums(&self, op: ColumnSums) -> Result<()> {
        self.sum_columns(op.dy, None, op.sums.segments, op.sums.out)
    }

    /// Adds the column sums of every segment of dy, or of `x * inv_rms * dy`, to a row of `out` each.
    pub(super) fn sum_columns(
        &self,
        dy: Mat,
        x: Option<(Mat, Mat)>,
        ranges: &[Range<usize>],
        mut out: MatMut,
    ) -> Result<()> {
        for (i, ranges) in ranges.chunks(SEGMENTS).enumerate() {
            let rows = out.reborrow().row_range(i * SEGMENTS..i * SEGMENTS + ranges.len());
            let arguments = ColumnSumsArguments {
                dy: view(dy),
                x: view_or_none(x.map(|x| x.0)),
                inv_rms: view_or_none(x.map(|x| x.1)),
                out: view_mut(&rows),
                segment: segments(ranges),
            };
            let grid = Launch::line(dy.cols.div_ceil(32), 256).grid_yz(ranges.len(), 1);
            let shape = Launch { block: [32, 8, 1], ..grid }.shared(1024);
            if dy.cols > 0 {
                let summed: usize = ranges.iter().map(|r| r.len() * dy.cols).sum();
                let each = dy.dtype.bytes() * if x.is_some() { 2 } else { 1 };
                let work = Work::new((summed * each) as u64, summed as u64);
                self.launch(kernels::column_sums(dy.dtype), shape, &arguments, work)?;
            }
        }
        Ok(())
    }
}
