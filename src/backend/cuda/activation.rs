//! The nonlinearity of a feed-forward block and its gradients: `kernels/activation.cu`.

use super::Cuda;
use super::abi::{ACTIVATION_GELU_TANH, ACTIVATION_RELU, ACTIVATION_SILU, ActivationArguments, Matrix};
use super::kernels;
use super::launch::{chunks, view, view_mut, view_or_none};
use crate::backend::{Activate, ActivateBackward, Activation, Mat, MatMut};
use crate::error::Result;

impl Cuda {
    pub(super) fn activate(&self, op: Activate) -> Result<()> {
        let work = op.work();
        let Activate { kind, gate, up, y } = op;
        if y.rows == 0 || y.cols == 0 {
            return Ok(());
        }
        let arguments = activation_arguments(kind, gate, up, None, &y, None);
        self.launch(kernels::activation(gate.dtype), chunks(&arguments.y), &arguments, work)
    }

    pub(super) fn activate_backward(&self, op: ActivateBackward) -> Result<()> {
        let work = op.work();
        let ActivateBackward { kind, gate, up, dy, dgate, dup } = op;
        if dy.rows == 0 || dy.cols == 0 {
            return Ok(());
        }
        let arguments = activation_arguments(kind, gate, up, Some(dy), &dgate, dup.as_ref());
        self.launch(kernels::activation_backward(gate.dtype), chunks(&arguments.y), &arguments, work)
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
        Activation::Silu => ACTIVATION_SILU,
        Activation::Relu => ACTIVATION_RELU,
        Activation::GeluTanh => ACTIVATION_GELU_TANH,
    };
    let dup = dup.map_or(Matrix::NONE, view_mut);
    ActivationArguments {
        gate: view(gate),
        up: view_or_none(up),
        dy: view_or_none(dy),
        y: view_mut(y),
        dup,
        kind: kind as i32,
        unused: 0,
    }
}
