//! What the backward pass hands out, layer by layer, so that no full gradient has to exist.

use crate::backend::Mat;
use crate::error::Result;
use std::ops::Range;

/// Everything a gradient of one linear layer can be made of, while it is live.
pub struct LinearGradient<'a> {
    /// The layer's input, `[T x N]`.
    pub x: Mat<'a>,
    /// The gradient of its output, `[T x M]`.
    pub dy: Mat<'a>,
    /// `x Aᵀ [T x R]`, when the layer has a branch.
    pub h: Option<Mat<'a>>,
    /// `dy B [T x R]`, when the layer has a branch.
    pub z: Option<Mat<'a>>,
    /// The rows of each task (of the encoder's or the decoder's packing, whichever feeds the layer).
    pub segments: &'a [Range<usize>],
}

/// Whether and how the gradient of a dense parameter (a table, norm, bias) is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Not trained: do not compute it.
    Nothing,
    /// The gradient of the rows from `first_row` on (0 for norms and biases).
    Rows {
        /// First trained row of the parameter.
        first_row: usize,
        /// One block a task instead of their sum.
        per_task: bool,
    },
}

/// Receives gradients during the backward pass.
pub trait Tap {
    /// The gradient material of linear layer `site`; called once per layer and pass, last layer first.
    fn linear(&mut self, site: usize, gradient: &LinearGradient) -> Result<()>;
    /// What is wanted of dense parameter `index`.
    fn wants(&self, index: usize) -> Want;
    /// The gradient of dense parameter `index`: *f32* `[S * rows x cols]`, task after task
    /// (`S` = 1 unless `per_task`); called at most once per parameter and pass.
    fn dense(&mut self, index: usize, blocks: Mat) -> Result<()>;
}
