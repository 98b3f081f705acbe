//! [`crate::backend::Matmul`], through faer's GEMM.

use super::elementwise::fill;
use super::{host, host_mut};
use crate::backend::{Fill, Mat, MatMut, Matmul, MatmulMany, Operand};
use faer::linalg::matmul::matmul as gemm;
use faer::{Accum, MatMut as FaerMut, MatRef, Par};
use std::ops::Range;

/// Parts of a product that threads share begin at multiples of this many rows or columns.
const TILE: usize = 16;

/// Below this many multiply-adds, handing work to another thread costs more than it saves
/// (measured: about 5 us a hand-off, 20 to 50 GFLOP/s a core).
const PARALLEL_FROM: usize = 1 << 20;

fn view(m: Mat<'_>) -> MatRef<'_, f32> {
    let (rows, cols, ld) = (m.rows, m.cols, m.ld);
    MatRef::from_row_major_slice_with_stride(host(m), rows, cols, ld.max(cols))
}

fn view_mut<'a>(m: &'a mut MatMut<'_>) -> FaerMut<'a, f32> {
    let (rows, cols, ld) = (m.rows, m.cols, m.ld);
    // Not `from_row_major_slice_with_stride_mut`: in faer 0.24.4 it swaps the strides.
    FaerMut::from_column_major_slice_with_stride_mut(host_mut(m), cols, rows, ld.max(cols)).transpose_mut()
}

fn oriented<'a>(operand: &Operand<'a>) -> MatRef<'a, f32> {
    let stored = view(operand.mat);
    if operand.transposed { stored.transpose() } else { stored }
}

/// Rows and columns of a row-major slice with `ld` elements a row.
pub fn block(data: &[f32], ld: usize, rows: Range<usize>, columns: Range<usize>) -> MatRef<'_, f32> {
    let (first, count, width) = (rows.start * ld + columns.start, rows.len(), columns.len());
    let extent = if count == 0 { 0 } else { (count - 1) * ld + width };
    MatRef::from_row_major_slice_with_stride(&data[first..first + extent], count, width, ld)
}

/// The same, to write.
pub fn block_mut(data: &mut [f32], ld: usize, rows: Range<usize>, columns: Range<usize>) -> FaerMut<'_, f32> {
    let (first, count, width) = (rows.start * ld + columns.start, rows.len(), columns.len());
    let extent = if count == 0 { 0 } else { (count - 1) * ld + width };
    let part = &mut data[first..first + extent];
    FaerMut::from_column_major_slice_with_stride_mut(part, width, count, ld).transpose_mut()
}

/// `c (+)= alpha a b` on the calling thread.
pub fn product(c: FaerMut<f32>, add: bool, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    gemm(c, if add { Accum::Add } else { Accum::Replace }, a, b, alpha, Par::Seq);
    clear_upper_halves();
}

/// The GEMM library leaves the upper halves of the vector registers in use. On Intel's processors every scalar
/// floating-point instruction of the thread is many times slower from then on, until somebody clears them: here, where
/// products end, on the thread that computed them (`cargo bench --bench ops -- after` shows what it is worth).
fn clear_upper_halves() {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx) = pulp::core_arch::x86::Avx::try_new() {
        avx._mm256_zeroupper();
    }
}

/// [`product`] on `threads` threads. Every element is summed as on one: the result does not depend on them.
fn shared(threads: usize, c: FaerMut<f32>, add: bool, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    let (m, n, left) = (c.nrows(), c.ncols(), threads / 2);
    let at = |size: usize| (size * left / threads).next_multiple_of(TILE).min(size);
    if threads < 2 || m.max(n) <= TILE {
        product(c, add, alpha, a, b);
    } else if n >= m {
        let (c, b) = (c.split_at_col_mut(at(n)), b.split_at_col(at(n)));
        rayon::join(
            || shared(left, c.0, add, alpha, a, b.0),
            || shared(threads - left, c.1, add, alpha, a, b.1),
        );
    } else {
        let (c, a) = (c.split_at_row_mut(at(m)), a.split_at_row(at(m)));
        rayon::join(
            || shared(left, c.0, add, alpha, a.0, b),
            || shared(threads - left, c.1, add, alpha, a.1, b),
        );
    }
}

pub fn matmul(threads: usize, op: Matmul) {
    let Matmul { mut c, beta, alpha, a, b } = op;
    let ((m, k), n) = (a.shape(), c.cols);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if beta == 0.0 {
            fill(Fill { x: c, value: 0.0 });
        }
        return;
    }
    let threads = if m * n * k >= PARALLEL_FROM { threads } else { 1 };
    shared(threads, view_mut(&mut c), beta != 0.0, alpha, oriented(&a), oriented(&b));
}

pub fn matmul_many(threads: usize, op: MatmulMany) {
    let MatmulMany { beta, alpha, transpose_b, products } = op;
    for (c, a, b) in products {
        let b = Operand { mat: b, transposed: transpose_b };
        matmul(threads, Matmul { c, beta, alpha, a: a.n(), b });
    }
}
