//! What the pull keeps of a change: `kernels/shrink.cu`.

use super::Cuda;
use super::abi::ShrinkArguments;
use super::kernels;
use super::launch::{chunks, view_mut, view_or_none};
use crate::backend::Shrink;
use crate::error::Result;

impl Cuda {
    pub(super) fn shrink(&self, op: Shrink) -> Result<()> {
        if op.x.rows == 0 || op.x.cols == 0 {
            return Ok(());
        }
        let arguments = ShrinkArguments {
            x: view_mut(&op.x),
            f: view_or_none(op.rows.known),
            c: view_or_none(op.cols.known),
            tau: op.tau,
            f_rest: op.rows.rest.unwrap_or(-1.0),
            c_rest: op.cols.rest.unwrap_or(-1.0),
            unused: 0.0,
        };
        self.launch(kernels::SHRINK, chunks(&arguments.x), &arguments, op.work())
    }
}
