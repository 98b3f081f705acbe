//! Rows of a table: gathered, and added back to.

use crate::backend::work::{Work, bytes_mut};
use crate::backend::{Backend, DType, Indices, Mat, MatMut};
use crate::error::Result;

/// `to[i] = scale * from[rows[i]]`: an embedding, or a choice of rows.
pub struct Gather<'a> {
    /// `[any x D]`.
    pub from: Mat<'a>,
    /// `T` row numbers of `from`.
    pub rows: &'a Indices,
    /// Factor.
    pub scale: f32,
    /// `[T x D]`, of the same type, or f32; written.
    pub to: MatMut<'a>,
}

impl Gather<'_> {
    pub(in crate::backend) fn check(&self) {
        assert_eq!((self.rows.len(), self.from.cols), self.to.shape(), "gather");
        assert!(self.from.dtype == self.to.dtype || self.to.dtype == DType::F32, "gather");
        let inside = |i: &u32| (*i as usize) < self.from.rows;
        debug_assert!(self.rows.host.iter().all(inside), "gather: a row beyond the table");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        Work::new(2 * bytes_mut(&self.to) + 4 * self.rows.len() as u64, 0)
    }
}

/// `to[rows[g] - first_row] += scale * sum of group g's source rows of from`, for groups with `rows[g] >= first_row`.
pub struct ScatterAdd<'a> {
    /// `[T x D]`.
    pub from: Mat<'a>,
    /// Which rows go where.
    pub groups: &'a RowGroups,
    /// Factor.
    pub scale: f32,
    /// The target row that is row 0 of `to`.
    pub first_row: usize,
    /// `[any x D]`, *f32* or compute type, added to.
    pub to: MatMut<'a>,
}

impl ScatterAdd<'_> {
    pub(in crate::backend) fn check(&self) {
        assert_eq!(self.from.cols, self.to.cols, "scatter_add");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let elements = (self.groups.sources.len() * self.from.cols) as u64;
        let written = (self.groups.rows.len() * self.to.cols * self.to.dtype.bytes()) as u64;
        Work::new(elements * self.from.dtype.bytes() as u64 + 2 * written, elements)
    }
}

/// The rows of a scatter, grouped by target: target `rows[g]` receives the sum of the source rows
/// `sources[offsets[g]..offsets[g + 1]]`, in that order. Built once a batch, so that the sum is
/// deterministic without atomics.
pub struct RowGroups {
    /// Distinct target rows, ascending.
    pub rows: Indices,
    /// `rows.len() + 1` offsets into `sources`.
    pub offsets: Indices,
    /// Source rows.
    pub sources: Indices,
}

impl RowGroups {
    /// Groups (target row, source row) pairs for a scatter on `backend`; sources keep their order.
    pub fn new(backend: &dyn Backend, pairs: impl IntoIterator<Item = (u32, u32)>) -> Result<Self> {
        let mut pairs: Vec<(u32, u32)> = pairs.into_iter().collect();
        pairs.sort_unstable();
        let (mut rows, mut offsets, mut sources) = (Vec::new(), vec![0u32], Vec::new());
        for (target, source) in pairs {
            if rows.last() != Some(&target) {
                rows.push(target);
                offsets.push(sources.len() as u32);
            }
            sources.push(source);
            if let Some(end) = offsets.last_mut() {
                *end = sources.len() as u32;
            }
        }
        Ok(Self {
            rows: backend.indices(&rows)?,
            offsets: backend.indices(&offsets)?,
            sources: backend.indices(&sources)?,
        })
    }
}
