//! The vocabulary projection and its cross entropy.

use super::PerSegment;
use crate::backend::work::{Work, bytes};
use crate::backend::{Indices, Mat, MatMut};
use std::ops::Range;

/// Cross entropy of `softmax(cap(logit_scale * x headᵀ))` against `targets`, never holding all logits; with `dx` and
/// `head_gradient` the gradients of `sum_i weights[i] nll[i]`.
pub struct CrossEntropy<'a> {
    /// `[L x D]`.
    pub x: Mat<'a>,
    /// `[V x D]`.
    pub head: Mat<'a>,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// Scaled logits become `softcap * tanh(logit / softcap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// `L` token ids.
    pub targets: &'a Indices,
    /// *f32* `[L x 1]`.
    pub weights: Mat<'a>,
    /// *f32* `[L x 1]`, written.
    pub nll: MatMut<'a>,
    /// `[L x D]`, written.
    pub dx: Option<MatMut<'a>>,
    /// Of the head's trained rows.
    pub head_gradient: Option<HeadGradient<'a>>,
}

/// The gradient of the rows `first_row..` of a head, by segments of labelled rows.
pub struct HeadGradient<'a> {
    /// First trained row of the head.
    pub first_row: usize,
    /// Segments of labelled rows, and *f32* `[S * (V - first_row) x D]`, added to.
    pub grad: PerSegment<'a>,
}

impl CrossEntropy<'_> {
    pub(in crate::backend) fn check(&self) {
        let labels = self.x.rows;
        assert!(self.targets.len() == labels && self.nll.rows == labels, "cross_entropy");
        assert!(self.x.cols == self.head.cols && self.weights.rows == labels, "cross_entropy");
        assert!(self.softcap.is_none_or(|cap| cap > 0.0), "cross_entropy: softcap");
    }
    pub(in crate::backend) fn work(&self) -> Work {
        let trained = self.head_gradient.as_ref().map_or(0, |h| self.head.rows - h.first_row);
        let rows = self.head.rows * if self.dx.is_some() { 2 } else { 1 } + trained;
        let products = 2 * (self.x.rows * self.x.cols * rows) as u64;
        let softmax = 5 * (self.x.rows * self.head.rows) as u64;
        let gradient = (trained * self.x.cols * 8) as u64;
        Work::new(2 * bytes(self.x) + bytes(self.head) + gradient, products + softmax)
    }
}

/// Where a chunk of labelled rows that begins at `start` ends: after at most `step` rows, and where a segment of the
/// head's gradient begins or ends, so that a chunk belongs to one segment or to none. Says which.
pub fn chunk_end(
    (start, step, labels): (usize, usize, usize),
    segments: Option<&[Range<usize>]>,
) -> (usize, Option<usize>) {
    let segments = segments.unwrap_or_default();
    let segment = segments.iter().position(|s| s.contains(&start));
    let limit = match segment {
        Some(s) => segments[s].end,
        None => segments.iter().map(|s| s.start).filter(|s| *s > start).min().unwrap_or(labels),
    };
    ((start + step).min(limit).min(labels), segment)
}
