//! Rows, a few at a time on every thread.

use super::simd::{exp, fast, sum};
use super::{host_bf16_mut, host_mut};
use crate::backend::{Mat, MatMut};
use half::bf16;
use rayon::prelude::*;

/// Rows handed to a thread at once: enough work to pay for the hand-off.
pub fn rows_per_task(cols: usize) -> usize {
    (32 * 1024 / cols.max(1)).max(1)
}

/// Calls `f(i, row)` for every row of `to`, in parallel where it pays.
pub fn each_row(to: &mut MatMut, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    let shape = (to.rows, to.cols, to.ld);
    each_row_of(host_mut(to), shape, f);
}

/// The same, of a bf16 matrix.
pub fn each_row_bf16(to: &mut MatMut, f: impl Fn(usize, &mut [bf16]) + Send + Sync) {
    let shape = (to.rows, to.cols, to.ld);
    each_row_of(host_bf16_mut(to), shape, f);
}

fn each_row_of<T: Send>(
    data: &mut [T],
    (rows, cols, ld): (usize, usize, usize),
    f: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let block = rows_per_task(cols);
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
pub fn row<'a, T>(data: &'a [T], m: &Mat, i: usize) -> &'a [T] {
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
