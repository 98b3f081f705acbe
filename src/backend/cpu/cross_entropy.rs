//! [`crate::backend::CrossEntropy`], a few rows of logits at a time.

use super::matmul::layer_matmul;
use super::rows::softmax;
use super::simd::fast;
use super::{Products, elementwise, host, host_mut};
use crate::backend::ops::chunk_end;
use crate::backend::{CrossEntropy, HostPool, Matmul, Softcap, Storage, Tensor};
use rayon::prelude::*;

/// Most logits held at once (16 MB).
pub const LOGITS: usize = 4 << 20;

pub fn cross_entropy(threads: usize, products: Products, pool: &HostPool, op: CrossEntropy) {
    let CrossEntropy { x, head, logit_scale, softcap, targets, weights, mut nll, mut dx, mut head_gradient } =
        op;
    let (labels, vocabulary) = (x.rows, head.rows);
    let weight = host(weights);
    let nll_ld = nll.ld;
    let gradients = dx.is_some() || head_gradient.is_some();
    let step = (LOGITS / vocabulary.max(1)).clamp(1, labels.max(1));
    let mut start = 0;
    while start < labels {
        let segments = head_gradient.as_ref().map(|h| h.grad.segments);
        let (end, segment) = chunk_end((start, step, labels), segments);
        let n = end - start;
        let mut logits = Tensor::new(Storage::Host(pool.take(n * vocabulary)), n, vocabulary, x.dtype);
        let rows = x.row_range(start..end);
        let scores = Matmul { c: logits.mat_mut(), beta: 0.0, alpha: logit_scale, a: rows.n(), b: head.t() };
        layer_matmul(threads, products, pool, scores);
        if let Some(cap) = softcap {
            elementwise::softcap(Softcap { x: logits.mat_mut(), cap });
        }
        {
            let mut view = logits.mat_mut();
            let values = host_mut(&mut view);
            let nll = host_mut(&mut nll);
            let nlls: Vec<f32> = values
                .par_chunks_mut(vocabulary)
                .enumerate()
                .map(|(i, row)| {
                    fast!(|| {
                        let target = targets.host[start + i] as usize;
                        let at_target = row[target];
                        let slopes: Vec<f32> = match softcap.filter(|_| gradients) {
                            Some(cap) => row.iter().map(|z| 1.0 - (z / cap).powi(2)).collect(),
                            None => Vec::new(),
                        };
                        let loss = softmax(row) - at_target;
                        if gradients {
                            let w = weight[(start + i) * weights.ld] * logit_scale;
                            row.iter_mut().for_each(|p| *p *= w);
                            row[target] -= w;
                            row.iter_mut().zip(&slopes).for_each(|(p, slope)| *p *= slope);
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
            let c = dx.reborrow().row_range(start..end);
            let op = Matmul { c, beta: 0.0, alpha: 1.0, a: logits.mat().n(), b: head.n() };
            layer_matmul(threads, products, pool, op);
        }
        if let (Some(gradient), Some(segment)) = (&mut head_gradient, segment) {
            let trained = vocabulary - gradient.first_row;
            let c = gradient.grad.out.reborrow().row_range(segment * trained..(segment + 1) * trained);
            let part = logits.mat().col_range(gradient.first_row..vocabulary);
            layer_matmul(
                threads,
                products,
                pool,
                Matmul { c, beta: 1.0, alpha: 1.0, a: part.t(), b: rows.n() },
            );
        }
        start = end;
    }
}
