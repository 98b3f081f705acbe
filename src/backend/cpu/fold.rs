//! [`crate::backend::Fold`], as a product.

use super::elementwise::scale;
use super::host_bf16_mut;
use super::matmul::matmul;
use super::narrow::{PIECE, widened};
use super::rows::{each_row_bf16, row};
use super::simd::fast;
use crate::backend::{
    AddRounded, DType, Fold, HostPool, Mat, MatMut, Matmul, Rounding, Scale, Storage, Tensor,
};
use half::bf16;

pub fn fold(threads: usize, pool: &HostPool, op: Fold) {
    let Fold { mut w, keep, scale: alpha, b, a, rounding } = op;
    match w.dtype {
        DType::F32 => sum(threads, pool, (&mut w, keep), alpha, b, a),
        DType::BF16 => {
            let (rows, cols) = w.shape();
            let some = (PIECE / cols.max(1)).clamp(1, rows.max(1));
            let buffer = Storage::Host(pool.take(some * cols));
            let mut piece = Tensor::new(buffer, some, cols, DType::F32);
            for first in (0..rows).step_by(some) {
                let these = 0..some.min(rows - first);
                let mut to = piece.mat_mut().row_range(these.clone());
                let mut from = w.reborrow().row_range(first..first + these.len());
                let (ld, values) = (from.ld, host_bf16_mut(&mut from));
                let sums = super::host_mut(&mut to);
                fast!(|| {
                    let rows = values.chunks(ld.max(1)).zip(sums.chunks_mut(cols.max(1)));
                    rows.for_each(|(from, to)| widened(&from[..cols], to));
                });
                sum(threads, pool, (&mut to, keep), alpha, b.row_range(first..first + these.len()), a);
                let sums = super::host(to.as_mat());
                let rows = values.chunks_mut(ld.max(1)).zip(sums.chunks(cols.max(1)));
                rows.enumerate()
                    .for_each(|(i, (to, from))| round(rounding, first + i, from, &mut to[..cols]));
            }
        }
    }
}

/// [`AddRounded`].
pub fn add_rounded(op: AddRounded) {
    let AddRounded { x, mut y, seed } = op;
    let data = super::host(x);
    each_row_bf16!(&mut y, |i, to| {
        let sums: Vec<f32> = to.iter().zip(row(data, &x, i)).map(|(y, x)| y.to_f32() + x).collect();
        round(Rounding::Stochastic(seed), i, &sums, to);
    });
}

/// `w = keep w + alpha b a`.
fn sum(threads: usize, pool: &HostPool, (w, keep): (&mut MatMut, f32), alpha: f32, b: Mat, a: Mat) {
    if keep != 1.0 {
        scale(Scale { x: w.reborrow(), alpha: keep });
    }
    matmul(threads, pool, Matmul { c: w.reborrow(), beta: 1.0, alpha, a: b.n(), b: a.n() });
}

/// Rounds a row of sums; at random as the kernels do it, with the same numbers (`kernels/matmul.cuh`).
fn round(rounding: Rounding, row: usize, from: &[f32], to: &mut [bf16]) {
    let Rounding::Stochastic(seed) = rounding else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_f32(*from));
        return;
    };
    for (quad, (to, from)) in to.chunks_mut(4).zip(from.chunks(4)).enumerate() {
        let random = random64(seed, row as u64, quad as u64);
        for (j, (to, from)) in to.iter_mut().zip(from).enumerate() {
            let up = if from.is_finite() { (random >> (16 * j)) as u32 & 0xffff } else { 0 };
            *to = bf16::from_bits((from.to_bits().wrapping_add(up) >> 16) as u16);
        }
    }
}

/// 64 random bits of a row and four columns, 16 for each: SplitMix64.
fn random64(seed: u64, row: u64, quad: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul((row << 32 | quad).wrapping_add(1)));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
