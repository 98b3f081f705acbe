//! The rotary position embedding.

use crate::backend::work::{Work, bytes_mut};
use crate::backend::{Indices, Mat, MatMut};

/// Rotates in place: half-split layout (`rotate_half` in transformers), angle of row i and pair j
/// `positions[i] * inv_freq[j]` (Su et al. 2021). The first r of a head's d values turn, the others stay.
pub struct Rope<'a> {
    /// `[T x heads d]`, in place.
    pub x: MatMut<'a>,
    /// `T` positions.
    pub positions: &'a Indices,
    /// *f32* `[1 x r/2]`.
    pub inv_freq: Mat<'a>,
    /// Heads in x.
    pub heads: usize,
    /// Factor on what turns (yarn, longrope; else 1).
    pub factor: f32,
    /// Whether to rotate back: the gradient.
    pub inverse: bool,
}

impl Rope<'_> {
    pub(in crate::backend) fn check(&self) {
        let (columns, heads, turned) = (self.x.cols, self.heads, 2 * self.inv_freq.cols);
        assert!(columns.is_multiple_of(heads), "rope: {columns} columns, {heads} heads");
        assert!(turned <= columns / heads, "rope: {turned} of {} values turn", columns / heads);
        assert_eq!(self.x.rows, self.positions.len(), "rope");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::each(2 * bytes_mut(&self.x), 3, self.x.shape())
    }
}
