//! Products with a weight whose values take less than f32 in memory, as bf16 or in codes: widened a piece at a time on the
//! way into the product, on the thread that multiplies with it, and gone from its cache after it.

use super::dequantize::dequantized;
use super::gemm::product;
use super::host_bf16;
use super::simd::fast;
use crate::backend::{HostPool, Mat, Quantised};
use faer::{MatMut as FaerMut, MatRef};
use half::bf16;
use std::ops::Range;

/// Most values of a weight that a thread has as f32 at a time (1 MB).
pub const PIECE: usize = 1 << 18;

/// Rows of a weight that a product sums over at a time. As sums must, it depends on neither the threads nor the shape.
const DEPTH: usize = 512;

/// A weight as it is kept.
#[derive(Clone, Copy)]
pub enum Kept<'a> {
    /// As bf16.
    Bf16(Mat<'a>),
    /// In codes.
    Codes(&'a Quantised),
}

impl Kept<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Bf16(m) => m.shape(),
            Self::Codes(q) => q.shape,
        }
    }

    /// Some columns of a row, as f32.
    #[inline(always)]
    fn widen(&self, row: usize, columns: Range<usize>, to: &mut [f32]) {
        match self {
            Self::Bf16(m) => widened(&host_bf16(*m)[row * m.ld..][columns], to),
            Self::Codes(q) => dequantized(q, row, columns, to),
        }
    }
}

/// bf16 as f32: the upper half of its bits.
#[inline(always)]
pub fn widened(from: &[bf16], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from_bits(u32::from(from.to_bits()) << 16));
}

/// The right-hand side of a product, some rows and columns of a weight.
#[derive(Clone)]
pub struct Part<'a> {
    weight: Kept<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    transposed: bool,
}

impl<'a> Part<'a> {
    /// All of a weight.
    pub fn whole(weight: Kept<'a>, transposed: bool) -> Self {
        let (rows, columns) = weight.shape();
        Self { weight, rows: 0..rows, columns: 0..columns, transposed }
    }

    /// The columns of the product before and from `at` on.
    pub fn split_at_col(self, at: usize) -> (Self, Self) {
        let (mut first, mut second) = (self.clone(), self);
        let (first_range, second_range) = match first.transposed {
            true => (&mut first.rows, &mut second.rows),
            false => (&mut first.columns, &mut second.columns),
        };
        first_range.end = first_range.start + at;
        second_range.start = first_range.end;
        (first, second)
    }

    /// `c (+)= alpha a b` on the calling thread, where b is this.
    pub fn product(&self, pool: &HostPool, mut c: FaerMut<f32>, add: bool, alpha: f32, a: MatRef<f32>) {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let mut buffer = pool.take(PIECE.max(columns).min(rows * columns));
        if self.transposed {
            let some = (PIECE / columns.max(1)).clamp(1, rows.max(1));
            for first in (0..rows).step_by(some) {
                let count = some.min(rows - first);
                let piece = self.piece(first..first + count, 0..columns, buffer.as_mut_slice());
                product(c.as_mut().subcols_mut(first, count), add, alpha, a, piece.transpose());
            }
            return;
        }
        for depth in (0..rows).step_by(DEPTH) {
            let (count, width) = (DEPTH.min(rows - depth), PIECE / DEPTH);
            let (a, add) = (a.subcols(depth, count), add || depth > 0);
            for first in (0..columns).step_by(width) {
                let width = width.min(columns - first);
                let piece = self.piece(depth..depth + count, first..first + width, buffer.as_mut_slice());
                product(c.as_mut().subcols_mut(first, width), add, alpha, a, piece);
            }
        }
    }

    /// Rows and columns of this as f32, in `to`.
    fn piece<'b>(&self, rows: Range<usize>, columns: Range<usize>, to: &'b mut [f32]) -> MatRef<'b, f32> {
        let (count, width) = (rows.len(), columns.len());
        let to = &mut to[..count * width];
        let from = self.columns.start + columns.start..self.columns.start + columns.end;
        fast!(|| {
            for (row, to) in rows.zip(to.chunks_mut(width)) {
                self.weight.widen(self.rows.start + row, from.clone(), to);
            }
        });
        MatRef::from_row_major_slice(to, count, width)
    }
}
