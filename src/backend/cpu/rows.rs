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

/// Calls `|i, row| ..` for every row of a matrix, in parallel where it pays, compiled as by [`fast!`].
macro_rules! each_row {
    ($to:expr, |$i:pat_param, $row:pat_param| $body:expr) => {
        $crate::backend::cpu::rows::of_each_row(
            $to,
            #[inline(always)]
            |$i, $row| $body,
        )
    };
}
pub(super) use each_row;

/// The same, of a bf16 matrix.
macro_rules! each_row_bf16 {
    ($to:expr, |$i:pat_param, $row:pat_param| $body:expr) => {
        $crate::backend::cpu::rows::of_each_row_bf16(
            $to,
            #[inline(always)]
            |$i, $row| $body,
        )
    };
}
pub(super) use each_row_bf16;

/// What [`each_row!`] calls.
pub fn of_each_row(to: &mut MatMut, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    let shape = (to.rows, to.cols, to.ld);
    in_blocks(host_mut(to), shape, f);
}

/// What [`each_row_bf16!`] calls.
pub fn of_each_row_bf16(to: &mut MatMut, f: impl Fn(usize, &mut [bf16]) + Send + Sync) {
    let shape = (to.rows, to.cols, to.ld);
    in_blocks(host_bf16_mut(to), shape, f);
}

fn in_blocks<T: Send>(
    data: &mut [T],
    (rows, cols, ld): (usize, usize, usize),
    f: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let block = rows_per_task(cols);
    let of_block = |block: &mut [T], first: usize| {
        fast!(|| {
            for (i, row) in block.chunks_mut(ld).enumerate() {
                f(first + i, &mut row[..cols]);
            }
        });
    };
    if rows <= block {
        return of_block(data, 0);
    }
    data.par_chunks_mut(ld * block).enumerate().for_each(|(b, rows)| of_block(rows, b * block));
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
