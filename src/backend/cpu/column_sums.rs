//! [`crate::backend::ColumnSums`].

use super::rows::row;
use super::simd::axpy;
use super::{host, host_mut};
use crate::backend::{ColumnSums, PerSegment};

pub fn column_sums(op: ColumnSums) {
    let ColumnSums { dy, sums: PerSegment { segments, mut out } } = op;
    let data = host(dy);
    let (ld, cols) = (out.ld, out.cols);
    let out = host_mut(&mut out);
    for (segment, rows) in segments.iter().enumerate() {
        for i in rows.clone() {
            axpy(1.0, row(data, &dy, i), &mut out[segment * ld..segment * ld + cols]);
        }
    }
}
