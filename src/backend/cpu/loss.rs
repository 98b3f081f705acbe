//! The vocabulary projection and its cross entropy, a few rows of logits at a time.

use super::products::matmul;
use super::rows::softmax;
use super::simd::fast;
use super::{host, host_mut};
use crate::backend::{HeadGradient, HostPool, Indices, Mat, MatMut, Op, Storage, Tensor};
use rayon::prelude::*;

/// Most logits held at once (16 MB).
pub const LOGITS: usize = 4 << 20;

/// See [`crate::backend::Backend::cross_entropy`].
pub fn cross_entropy(
    threads: usize,
    pool: &HostPool,
    x: Mat,
    head: Mat,
    logit_scale: f32,
    targets: &Indices,
    weights: Mat,
    mut nll: MatMut,
    mut dx: Option<MatMut>,
    mut head_gradient: Option<HeadGradient>,
) {
    let (labels, vocabulary) = (x.rows, head.rows);
    assert!(targets.len() == labels && x.cols == head.cols && nll.rows == labels, "cross_entropy");
    let weight = host(weights);
    let nll_ld = nll.ld;
    let gradients = dx.is_some() || head_gradient.is_some();
    // Chunks end at segments of the head's gradient, so that each belongs to one of them.
    let step = (LOGITS / vocabulary.max(1)).clamp(1, labels.max(1));
    let mut start = 0;
    while start < labels {
        let segment = head_gradient.as_ref().and_then(|h| h.segments.iter().position(|s| s.contains(&start)));
        let limit = match (&head_gradient, segment) {
            (Some(h), Some(s)) => h.segments[s].end,
            _ => labels,
        };
        let end = (start + step).min(limit).min(labels);
        let n = end - start;
        let mut logits = Tensor::new(Storage::Host(pool.take(n * vocabulary)), n, vocabulary, x.dtype);
        let rows = x.row_range(start..end);
        matmul(threads, logits.mat_mut(), 0.0, logit_scale, rows, Op::N, head, Op::T);
        {
            let mut view = logits.mat_mut();
            let values = host_mut(&mut view);
            let nll = host_mut(&mut nll);
            let nlls: Vec<f32> = values
                .par_chunks_mut(vocabulary)
                .enumerate()
                .map(|(i, row)| {
                    fast(|| {
                        let target = targets.host[start + i] as usize;
                        let at_target = row[target];
                        let loss = softmax(row) - at_target;
                        if gradients {
                            let w = weight[(start + i) * weights.ld] * logit_scale;
                            row.iter_mut().for_each(|p| *p *= w);
                            row[target] -= w;
                        }
                        loss
                    })
                })
                .collect();
            for (i, loss) in nlls.into_iter().enumerate() {
                nll[(start + i) * nll_ld] = loss;
            }
        }
        if let Some(dx) = &mut dx {
            let to = dx.reborrow().row_range(start..end);
            matmul(threads, to, 0.0, 1.0, logits.mat(), Op::N, head, Op::N);
        }
        if let (Some(gradient), Some(segment)) = (&mut head_gradient, segment) {
            let trained = vocabulary - gradient.first_row;
            let to = gradient.out.reborrow().row_range(segment * trained..(segment + 1) * trained);
            let part = logits.mat().col_range(gradient.first_row..vocabulary);
            matmul(threads, to, 1.0, 1.0, part, Op::T, rows, Op::N);
        }
        start = end;
    }
}
