//! Products of matrices, through faer's GEMM.

use super::{host, host_mut};
use crate::backend::{Mat, MatMut, Op, OuterPart};
use faer::linalg::matmul::matmul as gemm;
use faer::{Accum, MatMut as FaerMut, MatRef, Par};
use std::ops::Range;

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

fn oriented(m: MatRef<'_, f32>, op: Op) -> MatRef<'_, f32> {
    match op {
        Op::N => m,
        Op::T => m.transpose(),
    }
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
}

/// See [`crate::backend::Backend::matmul`].
pub fn matmul(threads: usize, mut c: MatMut, beta: f32, alpha: f32, a: Mat, op_a: Op, b: Mat, op_b: Op) {
    let (m, n) = c.shape();
    let k = if op_a == Op::N { a.cols } else { a.rows };
    let a_shape = if op_a == Op::N { (a.rows, a.cols) } else { (a.cols, a.rows) };
    let b_shape = if op_b == Op::N { (b.rows, b.cols) } else { (b.cols, b.rows) };
    assert!(a_shape == (m, k) && b_shape == (k, n), "matmul: {a_shape:?} x {b_shape:?} into {m} x {n}");
    assert!(beta == 0.0 || beta == 1.0, "matmul: beta {beta}");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if beta == 0.0 {
            super::fill(&mut c, 0.0);
        }
        return;
    }
    let par = if threads > 1 && m * n * k >= PARALLEL_FROM { Par::rayon(threads) } else { Par::Seq };
    let accum = if beta == 0.0 { Accum::Replace } else { Accum::Add };
    gemm(view_mut(&mut c), accum, oriented(view(a), op_a), oriented(view(b), op_b), alpha, par);
}

/// See [`crate::backend::Backend::outer`].
pub fn outer(threads: usize, y: Mat, x: Mat, parts: &[OuterPart], mut out: MatMut) {
    for part in parts {
        if part.rows.is_empty() || part.columns.is_empty() {
            continue;
        }
        let to = out.reborrow().col_range(part.to..part.to + part.columns.len());
        let rows = part.rows.clone();
        matmul(
            threads,
            to,
            1.0,
            part.scale,
            y.row_range(rows.clone()),
            Op::T,
            x.row_range(rows).col_range(part.columns.clone()),
            Op::N,
        );
    }
}
