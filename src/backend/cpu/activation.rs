//! [`crate::backend::Activate`] and its gradients.

use super::host;
use super::rows::{each_row, row};
use super::simd::{sigmoid, tanh};
use crate::backend::{Activate, ActivateBackward, Activation};

const GELU_C: f32 = 0.797_884_6; // sqrt(2 / pi)
const GELU_A: f32 = 0.044_715;

/// A nonlinearity: its value and its derivative. One type each, so that the loops over them vectorise.
trait Nonlinearity {
    fn value(x: f32) -> f32;
    fn derivative(x: f32) -> f32;
}

struct Silu;
struct Relu;
struct GeluTanh;

impl Nonlinearity for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }
    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

impl Nonlinearity for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.max(0.0)
    }
    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        f32::from(x > 0.0)
    }
}

impl Nonlinearity for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + tanh(GELU_C * (x + GELU_A * x * x * x)))
    }
    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let t = tanh(GELU_C * (x + GELU_A * x * x * x));
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_C * (1.0 + 3.0 * GELU_A * x * x)
    }
}

pub fn activate(op: Activate) {
    match op.kind {
        Activation::Silu => forward::<Silu>(op),
        Activation::Relu => forward::<Relu>(op),
        Activation::GeluTanh => forward::<GeluTanh>(op),
    }
}

fn forward<A: Nonlinearity>(op: Activate) {
    let Activate { gate, up, mut y, .. } = op;
    let g = host(gate);
    let u = up.map(|u| (host(u), u));
    each_row!(&mut y, |i, out| {
        let gate = row(g, &gate, i);
        match &u {
            Some((data, up)) => {
                for ((y, g), u) in out.iter_mut().zip(gate).zip(row(data, up, i)) {
                    *y = A::value(*g) * u;
                }
            }
            None => {
                for (y, g) in out.iter_mut().zip(gate) {
                    *y = A::value(*g);
                }
            }
        }
    });
}

pub fn activate_backward(op: ActivateBackward) {
    match op.kind {
        Activation::Silu => backward::<Silu>(op),
        Activation::Relu => backward::<Relu>(op),
        Activation::GeluTanh => backward::<GeluTanh>(op),
    }
}

fn backward<A: Nonlinearity>(op: ActivateBackward) {
    let ActivateBackward { gate, up, dy, mut dgate, dup, .. } = op;
    let (g, d) = (host(gate), host(dy));
    let u = up.map(|u| (host(u), u));
    each_row!(&mut dgate, |i, out| {
        let (gate, dy) = (row(g, &gate, i), row(d, &dy, i));
        match &u {
            Some((data, up)) => {
                for (((o, g), dy), u) in out.iter_mut().zip(gate).zip(dy).zip(row(data, up, i)) {
                    *o = A::derivative(*g) * dy * u;
                }
            }
            None => {
                for ((o, g), dy) in out.iter_mut().zip(gate).zip(dy) {
                    *o = A::derivative(*g) * dy;
                }
            }
        }
    });
    if let Some(mut dup) = dup {
        each_row!(&mut dup, |i, out| {
            for ((o, g), dy) in out.iter_mut().zip(row(g, &gate, i)).zip(row(d, &dy, i)) {
                *o = A::value(*g) * dy;
            }
        });
    }
}
