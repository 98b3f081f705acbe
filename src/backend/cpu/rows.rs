//! Rows, a few at a time on every thread.

use super::host_mut;
use super::simd::{exp, fast, sum};
use crate::backend::{Mat, MatMut};
use rayon::prelude::*;

/// Rows handed to a thread at once: enough work to pay for the hand-off.
pub fn rows_per_task(cols: usize) -> usize {
    (32 * 1024 / cols.max(1)).max(1)
}

/// Calls `f(i, row)` for every row of `to`, in parallel where it pays.
pub fn each_row(to: &mut MatMut, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    let (rows, cols, ld) = (to.rows, to.cols, to.ld);
    if rows == 0 || cols == 0 {
        return;
    }
    let block = rows_per_task(cols);
    let data = host_mut(to);
    if rows <= block {
        fast(|| data.chunks_mut(ld).enumerate().for_each(|(i, row)| f(i, &mut row[..cols])));
        return;
    }
    data.par_chunks_mut(ld * block).enumerate().for_each(|(b, chunk)| {
        fast(|| chunk.chunks_mut(ld).enumerate().for_each(|(i, row)| f(b * block + i, &mut row[..cols])));
    });
}

/// Row i of a view.
#[inline(always)]
pub fn row<'a>(data: &'a [f32], m: &Mat, i: usize) -> &'a [f32] {
    &data[i * m.ld..i * m.ld + m.cols]
}

/// Turns scores into probabilities in place; returns their log-sum-exp.
#[inline(always)]
pub fn softmax(scores: &mut [f32]) -> f32 {
    let most = super::simd::max(scores);
    if most == f32::NEG_INFINITY {
        scores.fill(0.0);
        return most;
    }
    for s in scores.iter_mut() {
        *s = exp(*s - most);
    }
    let total = sum(scores);
    let inverse = 1.0 / total;
    for s in scores.iter_mut() {
        *s *= inverse;
    }
    most + total.ln()
}
