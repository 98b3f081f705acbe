//! [`crate::backend::Divergence`].

use super::rows::{row, softmax};
use super::simd::fast;
use super::{host, host_mut};
use crate::backend::Divergence;
use rayon::prelude::*;

pub fn divergence(op: Divergence) {
    let Divergence { mut logits, before, factor, softcap, mut kl } = op;
    let inverse_cap = softcap.map_or(0.0, f32::recip);
    let (cols, ld, kl_ld) = (logits.cols, logits.ld, kl.ld);
    let then = host(before);
    let found: Vec<f32> = host_mut(&mut logits)
        .par_chunks_mut(ld.max(1))
        .enumerate()
        .map(|(i, now)| fast!(|| of_row(&mut now[..cols], row(then, &before, i), factor, inverse_cap)))
        .collect();
    let kl = host_mut(&mut kl);
    found.into_iter().enumerate().for_each(|(i, value)| kl[i * kl_ld] = value);
}

/// One row: its divergence, and the gradient in place of `now`.
#[inline(always)]
fn of_row(now: &mut [f32], before: &[f32], factor: f32, inverse_cap: f32) -> f32 {
    let mut p = before.to_vec();
    let normaliser = softmax(&mut p);
    // Of log-probabilities that are nearly equal the difference is taken first.
    let mut difference = 0.0;
    for ((p, before), now) in p.iter().zip(before).zip(now.iter()) {
        difference += f64::from(*p) * f64::from(before - now);
    }
    let slope = |z: &f32| 1.0 - (z * inverse_cap).powi(2);
    let slopes: Vec<f32> = if inverse_cap > 0.0 { now.iter().map(slope).collect() } else { Vec::new() };
    let kl = difference + f64::from(softmax(now)) - f64::from(normaliser);
    now.iter_mut().zip(&p).for_each(|(q, p)| *q = factor * (*q - p));
    now.iter_mut().zip(&slopes).for_each(|(q, slope)| *q *= slope);
    kl as f32
}
