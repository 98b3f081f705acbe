//! Adam's constants for a step, in the two conventions that occur.

use super::settings::OptimizerSettings;
use crate::backend::AdamBlock;
use std::ops::Range;

/// A block without decay: from zero, its update is the bare direction `-rate * m̂ / (sqrt(v̂) + eps)`.
/// `t` is the number of this update, from 1.
pub fn direction(o: &OptimizerSettings, columns: Range<usize>, t: u64, rate: f64) -> AdamBlock {
    block(o, columns, t, rate, (1.0, 1.0))
}

/// A full AdamW step: decay before (torch) or after (published) the update.
pub fn adamw(o: &OptimizerSettings, columns: Range<usize>, t: u64, lr: f64) -> AdamBlock {
    let keep = 1.0 - lr * o.weight_decay;
    block(o, columns, t, lr, if o.eps_before_correction { (1.0, keep) } else { (keep, 1.0) })
}

/// No step, only decay: moments stay as they are.
pub(super) fn idle(columns: Range<usize>, keep: f64) -> AdamBlock {
    AdamBlock {
        from: columns.start,
        terms: 1,
        stride: 0,
        gate: None,
        columns,
        beta1: 1.0,
        beta2: 1.0,
        step: 0.0,
        sqrt_correction2: 1.0,
        eps: 1.0,
        keep_before: keep as f32,
        keep_after: 1.0,
        grad_scale: 0.0,
        held: 0.0,
    }
}

fn block(
    o: &OptimizerSettings,
    columns: Range<usize>,
    t: u64,
    rate: f64,
    (before, after): (f64, f64),
) -> AdamBlock {
    let correction1 = 1.0 - o.beta1.powi(t.min(1 << 30) as i32);
    let correction2 = (1.0 - o.beta2.powi(t.min(1 << 30) as i32)).sqrt();
    let (step, sqrt_correction2) = if o.eps_before_correction {
        (rate * correction2 / correction1, 1.0)
    } else {
        (rate / correction1, correction2)
    };
    AdamBlock {
        from: columns.start,
        terms: 1,
        stride: 0,
        gate: None,
        columns,
        beta1: o.beta1 as f32,
        beta2: o.beta2 as f32,
        step: step as f32,
        sqrt_correction2: sqrt_correction2 as f32,
        eps: o.eps as f32,
        keep_before: before as f32,
        keep_after: after as f32,
        grad_scale: 1.0,
        held: 0.0,
    }
}
