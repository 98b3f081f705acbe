//! [`crate::backend::Matmul`], through faer's GEMM.

use super::elementwise::fill;
use super::gemm::product;
use super::narrow::{Kept, Part};
use super::{Products, host, host_mut, tiles};
use crate::backend::{DType, Fill, HostPool, Mat, MatMut, Matmul, MatmulMany, Operand, Quantised};
use faer::{MatMut as FaerMut, MatRef};
use std::ops::Range;

/// Parts of a product that threads share begin at multiples of this many rows or columns.
const TILE: usize = 16;

/// Below this many multiply-adds, handing work to another thread costs more than it saves
/// (measured: about 5 us a hand-off, 20 to 50 GFLOP/s a core).
const PARALLEL_FROM: usize = 1 << 20;

/// Rows, columns and depth from which a product of layers is rounded: a number is rounded in 0.1 ns, which below costs more
/// than the products that it takes part in.
const ROUNDED_FROM: usize = 16;

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

/// The first element of a block, and how many there are up to its last; none of no rows, wherever they would begin.
fn place(ld: usize, rows: &Range<usize>, columns: &Range<usize>) -> (usize, usize) {
    match rows.len() {
        0 => (0, 0),
        count => (rows.start * ld + columns.start, (count - 1) * ld + columns.len()),
    }
}

/// Rows and columns of a row-major slice with `ld` elements a row.
pub fn block(data: &[f32], ld: usize, rows: Range<usize>, columns: Range<usize>) -> MatRef<'_, f32> {
    let (first, extent) = place(ld, &rows, &columns);
    MatRef::from_row_major_slice_with_stride(&data[first..first + extent], rows.len(), columns.len(), ld)
}

/// The same, to write.
pub fn block_mut(data: &mut [f32], ld: usize, rows: Range<usize>, columns: Range<usize>) -> FaerMut<'_, f32> {
    let (first, extent) = place(ld, &rows, &columns);
    let part = &mut data[first..first + extent];
    FaerMut::from_column_major_slice_with_stride_mut(part, columns.len(), rows.len(), ld).transpose_mut()
}

/// The right-hand side of a product.
enum Right<'a> {
    F32(MatRef<'a, f32>),
    Narrow(Part<'a>),
}

impl<'a> Right<'a> {
    fn of(b: &Operand<'a>) -> Self {
        match b.mat.dtype {
            DType::F32 => Self::F32(oriented(b)),
            DType::BF16 => Self::Narrow(Part::whole(Kept::Bf16(b.mat), b.transposed)),
        }
    }
    fn split_at_col(self, at: usize) -> (Self, Self) {
        match self {
            Self::F32(b) => {
                let (first, second) = b.split_at_col(at);
                (Self::F32(first), Self::F32(second))
            }
            Self::Narrow(part) => {
                let (first, second) = part.split_at_col(at);
                (Self::Narrow(first), Self::Narrow(second))
            }
        }
    }
}

impl Products {
    /// Those of so many rows and columns, so deep.
    fn of_size(self, m: usize, n: usize, k: usize) -> Self {
        if m.min(n).min(k) < ROUNDED_FROM { Self::F32 } else { self }
    }
    /// `c (+)= alpha a b` on the calling thread.
    pub fn product(self, c: FaerMut<f32>, add: bool, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
        match self.of_size(c.nrows(), c.ncols(), a.ncols()) {
            Self::F32 => product(c, add, alpha, a, b),
            Self::Bf16 => tiles::product(c, add, alpha, a, b),
        }
    }
}

/// `c (+)= alpha a b`.
struct Shared<'a> {
    pool: &'a HostPool,
    add: bool,
    alpha: f32,
    /// Of two f32 sides, rounded.
    products: Products,
}

impl Shared<'_> {
    /// Computes it on `threads` threads. Every element is summed as on one: the result does not depend on them.
    fn run(&self, threads: usize, c: FaerMut<f32>, a: MatRef<f32>, b: Right) {
        let (m, n, left) = (c.nrows(), c.ncols(), threads / 2);
        let at = |size: usize| (size * left / threads).next_multiple_of(TILE).min(size);
        if threads < 2 || m.max(n) <= TILE {
            match b {
                Right::F32(b) if self.products == Products::Bf16 => {
                    tiles::product(c, self.add, self.alpha, a, b);
                }
                Right::F32(b) => product(c, self.add, self.alpha, a, b),
                Right::Narrow(part) => part.product(self.pool, c, self.add, self.alpha, a),
            }
        // No thread widens what another one does.
        } else if n >= m || (matches!(b, Right::Narrow(_)) && n > threads * TILE) {
            let (c, b) = (c.split_at_col_mut(at(n)), b.split_at_col(at(n)));
            rayon::join(|| self.run(left, c.0, a, b.0), || self.run(threads - left, c.1, a, b.1));
        } else {
            let (c, a) = (c.split_at_row_mut(at(m)), a.split_at_row(at(m)));
            let (one, other) = match b {
                Right::F32(b) => (Right::F32(b), Right::F32(b)),
                Right::Narrow(part) => (Right::Narrow(part.clone()), Right::Narrow(part)),
            };
            rayon::join(|| self.run(left, c.0, a.0, one), || self.run(threads - left, c.1, a.1, other));
        }
    }
}

pub fn matmul(threads: usize, pool: &HostPool, op: Matmul) {
    layer_matmul(threads, Products::F32, pool, op);
}

/// A product of layers, in the precision that was asked for: one with very few rows or columns stays f32.
pub fn layer_matmul(threads: usize, products: Products, pool: &HostPool, op: Matmul) {
    let Matmul { c, beta, alpha, a, b } = op;
    let (m, n) = c.shape();
    let products = products.of_size(m, n, b.shape().0);
    into(threads, products, pool, (c, beta), alpha, a, (b.shape().0, Right::of(&b)));
}

/// `c = beta c + a W`, or with Wᵀ, of a weight in codes.
pub fn matmul_with_codes(
    threads: usize,
    pool: &HostPool,
    (c, beta): (MatMut, f32),
    a: Mat,
    (w, transposed): (&Quantised, bool),
) {
    into(
        threads,
        Products::F32,
        pool,
        (c, beta),
        1.0,
        a.n(),
        (a.cols, Right::Narrow(Part::whole(Kept::Codes(w), transposed))),
    );
}

fn into(
    threads: usize,
    products: Products,
    pool: &HostPool,
    (mut c, beta): (MatMut, f32),
    alpha: f32,
    a: Operand,
    (k, b): (usize, Right),
) {
    let (m, n) = c.shape();
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
    let shared = Shared { pool, add: beta != 0.0, alpha, products };
    shared.run(threads, view_mut(&mut c), oriented(&a), b);
}

pub fn matmul_many(threads: usize, pool: &HostPool, op: MatmulMany) {
    let MatmulMany { beta, alpha, transpose_b, products } = op;
    for (c, a, b) in products {
        let b = Operand { mat: b, transposed: transpose_b };
        matmul(threads, pool, Matmul { c, beta, alpha, a: a.n(), b });
    }
}
