//! Adam's constants for a step, in the two conventions that occur.

use super::settings::OptimizerSettings;
use crate::backend::{AdamBlock, AdamUpdate, Tensor};
use std::ops::Range;

/// An [`AdamBlock`] whose update is a bare direction: `x` is zero before and `-rate * m̂ / (sqrt(v̂) + eps)` after.
/// `t` is the number of this update, from 1.
pub fn direction(
    o: &OptimizerSettings,
    columns: Range<usize>,
    t: u64,
    rate: f64,
    grad_scale: f64,
) -> AdamBlock {
    block(o, columns, t, rate, grad_scale, 1.0, 1.0)
}

/// Adam on `d`, which is zero before: its bare direction.
pub(super) fn bare<'a>(
    d: &'a mut Tensor,
    g: &'a Tensor,
    (m, v): (&'a mut Tensor, &'a mut Tensor),
    block: AdamBlock,
) -> AdamUpdate<'a> {
    let (x, m, v) = (d.mat_mut(), m.mat_mut(), v.mat_mut());
    AdamUpdate { x, g: g.mat(), m, v, blocks: vec![block], copy: None, change: None }
}

/// A full AdamW step: decay before (torch) or after (published) the update.
pub fn adamw(o: &OptimizerSettings, columns: Range<usize>, t: u64, lr: f64, grad_scale: f64) -> AdamBlock {
    let keep = 1.0 - lr * o.weight_decay;
    let (before, after) = if o.eps_before_correction { (1.0, keep) } else { (keep, 1.0) };
    block(o, columns, t, lr, grad_scale, before, after)
}

fn block(
    o: &OptimizerSettings,
    columns: Range<usize>,
    t: u64,
    rate: f64,
    scale: f64,
    before: f64,
    after: f64,
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
        grad_scale: scale as f32,
    }
}

/// The factor that brings a gradient of this norm down to `most` (`torch.nn.utils.clip_grad_norm_`).
pub fn clip_factor(norm: f64, most: f64) -> f64 {
    (most / (norm + 1e-6)).min(1.0)
}
