//! The operations of the engine as values: a closed list.
//!
//! If an operation is not on the transformer's or on the method's page, it is not here. An operation is a structure whose
//! fields are its operands; beside it stand its name, its check and its floor, once for every backend. The file of
//! an operation has the same stem here, in `cpu/`, in `cuda/`, in `kernels/` and in `tests/suite/ops/`.
//!
//! Letters used in shapes: `T` tokens (rows of a packed batch), `D` hidden size, `H` heads, `d`
//! head size, `M x N` a weight (outputs x inputs), `R` rank of all subspaces together, `V`
//! vocabulary, `L` labelled rows, `S` task segments.
//!
//! Arithmetic: activations and weights are in the backend's compute type (f32 on the CPU, bf16 on
//! a GPU); everything marked *f32* is f32 on every backend. Sums are in fixed order: same
//! inputs, same device, same bits. Shapes are the caller's contract: a wrong one is a bug in this
//! crate and panics; only what the device or the machine can refuse is an `Err`.

mod activation;
mod adam;
mod attention;
mod column_sums;
mod cross_entropy;
mod dequantize;
mod divergence;
mod dots;
mod elementwise;
mod fold;
mod gather;
mod linear;
mod matmul;
mod orthonormalize;
mod project;
mod rmsnorm;
mod rope;
mod shrink;
mod step_factors;
mod weight_grad;

pub use activation::{Activate, ActivateBackward, Activation};
pub use adam::{Adam, AdamBlock, AdamUpdate};
pub use attention::{Attention, AttentionBackward, AttentionPass, AttentionSpec, Mask, RelativeBias};
pub use column_sums::ColumnSums;
pub use cross_entropy::{CrossEntropy, HeadGradient, chunk_end};
pub use dequantize::{Dequantize, Groups, Levels, Quantised, Rounded};
pub use divergence::Divergence;
pub use dots::Dots;
pub use elementwise::{AddRounded, Axpy, Copy, Fill, Scale, Softcap};
pub use fold::{Fold, Rounding};
pub use gather::{Gather, RowGroups, ScatterAdd};
pub use linear::{AdaptedLinear, Branch, Linear, LinearInputGrad, Weight};
pub use matmul::{Matmul, MatmulMany, MatmulSplit, Operand};
pub use orthonormalize::OrthonormalizeRows;
pub use project::{ProjectColumns, ProjectRows};
pub use rmsnorm::{Rmsnorm, RmsnormBackward};
pub use rope::Rope;
pub use shrink::{Eigenvalues, Shrink};
pub use step_factors::{GateRule, GramEntry, StepFactors, factors};
pub use weight_grad::{ColumnPair, GradBlock, Gram, WeightGrad, Write};

use super::work::Work;
use super::{Mat, MatMut};
use std::ops::Range;

/// A gradient by segments of rows: the sum over the rows of segment s is added to block s of `out`'s rows.
pub struct PerSegment<'a> {
    /// Ranges of rows, one a segment.
    pub segments: &'a [Range<usize>],
    /// *f32*, as many blocks of rows as there are segments; added to.
    pub out: MatMut<'a>,
}

/// Lists the operations: their enum, and what is asked of every one of them.
macro_rules! operations {
    ($($op:ident $name:literal,)*) => {
        /// Any operation.
        #[allow(clippy::large_enum_variant, reason = "it lives for one call")]
        pub enum Operation<'a> {
            $(#[doc = concat!("See [`struct@", stringify!($op), "`].")] $op($op<'a>),)*
        }

        impl Operation<'_> {
            /// Its name in profiles: the stem of its files, with what distinguishes several in one file.
            pub fn name(&self) -> &'static str {
                match self { $(Operation::$op(_) => $name,)* }
            }
            /// Asserts that the operands' shapes and types fit each other.
            pub fn check(&self) {
                match self { $(Operation::$op(op) => op.check(),)* }
            }
            /// Its floor.
            pub fn work(&self) -> Work {
                match self { $(Operation::$op(op) => op.work(),)* }
            }
        }

        $(impl<'a> From<$op<'a>> for Operation<'a> {
            fn from(op: $op<'a>) -> Self {
                Operation::$op(op)
            }
        })*
    };
}

operations! {
    Copy "copy",
    Fill "fill",
    Scale "scale",
    Axpy "axpy",
    Softcap "softcap",
    AddRounded "add_rounded",
    Gather "gather",
    ScatterAdd "scatter_add",
    Matmul "matmul",
    MatmulMany "matmul_many",
    MatmulSplit "matmul_split",
    Linear "linear",
    LinearInputGrad "linear_input_grad",
    WeightGrad "weight_grad",
    ColumnSums "column_sums",
    Rmsnorm "rmsnorm",
    RmsnormBackward "rmsnorm_backward",
    Rope "rope",
    Attention "attention",
    AttentionBackward "attention_backward",
    Activate "activation",
    ActivateBackward "activation_backward",
    CrossEntropy "cross_entropy",
    Dequantize "dequantize",
    Divergence "divergence",
    Dots "dots",
    StepFactors "step_factors",
    Adam "adam",
    ProjectRows "project_rows",
    ProjectColumns "project_columns",
    Fold "fold",
    Shrink "shrink",
    OrthonormalizeRows "orthonormalize_rows",
}

/// Whether a view is of f32.
fn is_f32(m: Mat) -> bool {
    m.dtype == super::DType::F32
}
