//! The layers of a model, in the words that `model` and `gems` share: where a linear layer is, what of its
//! gradient is live in the backward pass, who wants it, and what an update may write to.

use crate::backend::{AdaptedLinear, Mat, MatMut};
use crate::error::Result;
use std::ops::Range;

/// What a linear layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Queries, keys and values in one matrix.
    Qkv,
    /// Attention output.
    O,
    /// The feed-forward block's first matrix (its gate, where it has one).
    Gate,
    /// The feed-forward block's second input matrix.
    Up,
    /// The feed-forward block's gate and second input in one matrix.
    GateUp,
    /// The feed-forward block's output matrix.
    Down,
}

impl Projection {
    /// All of them, in the order of a block.
    pub const ALL: [Self; 9] =
        [Self::Q, Self::K, Self::V, Self::Qkv, Self::O, Self::Gate, Self::Up, Self::GateUp, Self::Down];

    /// The name used in settings.
    pub fn name(self) -> &'static str {
        match self {
            Projection::Q => "q",
            Projection::K => "k",
            Projection::V => "v",
            Projection::Qkv => "qkv",
            Projection::O => "o",
            Projection::Gate => "gate",
            Projection::Up => "up",
            Projection::GateUp => "gate_up",
            Projection::Down => "down",
        }
    }

    /// What a matrix is made of that is several projections in one; nothing for all others.
    pub fn parts(self) -> &'static [Self] {
        match self {
            Projection::Qkv => &[Projection::Q, Projection::K, Projection::V],
            Projection::GateUp => &[Projection::Gate, Projection::Up],
            _ => &[],
        }
    }

    /// The projection of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// A linear layer: where it is and what shape it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its Hugging Face module name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// What it does.
    pub projection: Projection,
    /// M.
    pub outputs: usize,
    /// N.
    pub inputs: usize,
    /// Sites with the same number read the same input.
    pub input_group: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

/// Everything a gradient of one linear layer can be made of, while it is live. The gradient is
/// `dyᵀ x`, `[M x N]`.
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

/// Receives gradients during the backward pass, layer by layer, so that no full gradient has to exist.
pub trait Tap {
    /// The gradient material of linear layer `site`; called once per layer and pass, last layer first.
    fn linear(&mut self, site: usize, gradient: &LinearGradient) -> Result<()>;
    /// What is wanted of dense parameter `index`.
    fn wants(&self, index: usize) -> Want;
    /// The gradient of dense parameter `index`: *f32* `[S * rows x cols]`, task after task
    /// (`S` = 1 unless `per_task`); called at most once per parameter and pass.
    fn dense(&mut self, index: usize, blocks: Mat) -> Result<()>;
}

/// The trained parts of a model, which an update may write to.
pub trait Layers {
    /// All linear layers, in order.
    fn linears(&mut self) -> &mut [AdaptedLinear];
    /// A linear layer.
    fn linear(&mut self, site: usize) -> &mut AdaptedLinear {
        &mut self.linears()[site]
    }
    /// A dense parameter (table, norm, bias), compute dtype.
    fn dense(&mut self, index: usize) -> MatMut<'_>;
}
