//! A weight that is kept in codes, and its values.

use super::is_f32;
use crate::backend::work::{Work, bytes_mut};
use crate::backend::{Bytes, Indices, MatMut, Tensor};

/// A weight `W [M x N]` in codes of 4 or 8 bits, row by row without gaps between rows. An element is
/// `scale (level(code) - zero)`, with scale and zero of its group, in f32, then rounded as [`Quantised::rounded`] says.
pub struct Quantised {
    /// (M, N).
    pub shape: (usize, usize),
    /// What a code means.
    pub levels: Levels,
    /// `ceil(M N bits / 8)` bytes; of two codes in a byte the first is the high half.
    pub codes: Bytes,
    /// *f32* `[1 x groups]`.
    pub scales: Tensor,
    /// One byte a group; `None`: zero.
    pub zeros: Option<Bytes>,
    /// Which group an element is in.
    pub groups: Groups,
    /// The type that a value is rounded to before it is anybody's.
    pub rounded: Rounded,
}

/// What codes mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// Codes of 4 bits, which number these.
    Book([f32; 16]),
    /// Codes of 8 bits: the code less this.
    Byte(f32),
}

impl Levels {
    /// Bits of a code.
    pub fn bits(&self) -> usize {
        match self {
            Self::Book(_) => 4,
            Self::Byte(_) => 8,
        }
    }
}

/// The groups of elements that share scale and zero.
pub enum Groups {
    /// As many elements as this, counted from the first through all rows; the last group may be shorter.
    Runs(usize),
    /// `count` in every row; of each column, which.
    Columns {
        /// Groups of a row.
        count: usize,
        /// `[N]`.
        of: Indices,
    },
}

/// What a value is rounded to, as the library that wrote it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounded {
    /// Nothing: it stays f32.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Quantised {
    /// Groups of this many elements, or of these columns, in a weight of this shape.
    pub fn groups_of(&self) -> usize {
        match &self.groups {
            Groups::Runs(run) => (self.shape.0 * self.shape.1).div_ceil(*run),
            Groups::Columns { count, .. } => self.shape.0 * count,
        }
    }
    /// Bytes of codes, scales and zeros.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * 4 + self.zeros.as_ref().map_or(0, Bytes::len)
    }
}

/// `to =` rows of a quantised weight, from `first_row` on.
pub struct Dequantize<'a> {
    /// The weight.
    pub from: &'a Quantised,
    /// The first row wanted.
    pub first_row: usize,
    /// `[rows x N]`, written.
    pub to: MatMut<'a>,
}

impl Dequantize<'_> {
    pub(in crate::backend) fn check(&self) {
        let (from, (m, n)) = (self.from, self.from.shape);
        assert!(self.to.cols == n && self.first_row + self.to.rows <= m, "dequantize: rows");
        assert_eq!(from.codes.len(), (m * n * from.levels.bits()).div_ceil(8), "dequantize: codes");
        assert!(is_f32(from.scales.mat()) && from.scales.len() == from.groups_of(), "dequantize: scales");
        assert!(from.zeros.as_ref().is_none_or(|z| z.len() == from.groups_of()), "dequantize: zeros");
        if let Groups::Columns { of, .. } = &from.groups {
            assert_eq!(of.len(), n, "dequantize: groups of columns");
        }
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let share = self.to.rows as f64 / self.from.shape.0.max(1) as f64;
        let read = (self.from.bytes() as f64 * share) as u64;
        Work::each(read + bytes_mut(&self.to), 2, self.to.shape())
    }
}
