//! The root-mean-square norm and its gradient: `kernels/rmsnorm.cu`.

use super::Cuda;
use super::abi::{Launch, Matrix, RmsnormArguments, RmsnormBackwardArguments};
use super::kernels;
use super::launch::{view, view_mut};
use crate::backend::{PerSegment, Rmsnorm, RmsnormBackward};
use crate::error::Result;

/// A row is a warp's up to this many columns, a whole block's beyond.
const WARP_COLUMNS: usize = 1024;

/// Blocks for kernels that reduce rows (`row_sum` of `kernels/common.cuh`).
fn row_blocks(rows: usize, cols: usize) -> Launch {
    let (block, per_block) = if cols <= WARP_COLUMNS { ([32, 8, 1], 8) } else { ([256, 1, 1], 1) };
    Launch { block, ..Launch::line(rows.div_ceil(per_block), 256) }.shared(128)
}

impl Cuda {
    pub(super) fn rmsnorm(&self, op: Rmsnorm) -> Result<()> {
        let work = op.work();
        let Rmsnorm { x, residual, w, eps, y, inv_rms } = op;
        if x.rows == 0 {
            return Ok(());
        }
        let (residual, sum) = match &residual {
            Some((r, sum)) => (view(*r), view_mut(sum)),
            None => (Matrix::NONE, Matrix::NONE),
        };
        let (w, inv_rms) = (view(w), view_mut(&inv_rms));
        let arguments =
            RmsnormArguments { x: view(x), residual, sum, w, y: view_mut(&y), inv_rms, eps, unused: 0.0 };
        self.launch(kernels::rmsnorm(x.dtype), row_blocks(x.rows, x.cols), &arguments, work)
    }

    pub(super) fn rmsnorm_backward(&self, op: RmsnormBackward) -> Result<()> {
        let work = op.work();
        let RmsnormBackward { s, w, inv_rms, dy, dx, accumulate, dw } = op;
        if s.rows == 0 {
            return Ok(());
        }
        if let Some(PerSegment { segments, out }) = dw {
            self.sum_columns(dy, Some((s, inv_rms)), segments, out)?;
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
        self.launch(kernels::rmsnorm_backward(s.dtype), row_blocks(s.rows, s.cols), &arguments, work)
    }
}
