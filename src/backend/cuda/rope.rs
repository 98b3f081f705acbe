//! The rotary position embedding: `kernels/rope.cu`.

use super::Cuda;
use super::abi::{Launch, RopeArguments};
use super::kernels;
use super::launch::{address, view, view_mut};
use crate::backend::Rope;
use crate::error::Result;

impl Cuda {
    pub(super) fn rope(&self, op: Rope) -> Result<()> {
        let work = op.work();
        let Rope { x, positions, inv_freq, heads, factor, inverse } = op;
        if x.rows == 0 {
            return Ok(());
        }
        let arguments = RopeArguments {
            x: view_mut(&x),
            inv_freq: view(inv_freq),
            positions: address(positions),
            heads: heads as i32,
            head_dim: (x.cols / heads) as i32,
            sign: if inverse { -1.0 } else { 1.0 },
            factor,
        };
        let shape = Launch::cover(x.rows * inv_freq.cols);
        self.launch(kernels::rope(x.dtype), shape, &arguments, work)
    }
}
