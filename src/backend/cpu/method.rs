//! The method's own operations: dot products, Adam, projections, orthonormal rows.

use super::products::matmul;
use super::rows::{each_row, row};
use super::simd::fast;
use super::{host, host_mut};
use crate::backend::factors;
use crate::backend::{AdamBlock, AdamUpdate, HostPool, Mat, MatMut, Op, Storage, Tensor};
use rayon::prelude::*;

/// Elements from which on threads share the work of [`dots`].
const PARALLEL: usize = 1 << 17;

/// See [`crate::backend::Backend::dots`].
pub fn dots(pairs: &[(Mat, Mat)], mut out: MatMut) {
    let one = |(x, y): &(Mat, Mat)| {
        assert_eq!(x.shape(), y.shape(), "dots");
        let (a, b) = (host(*x), host(*y));
        let mut total = 0f64;
        fast(|| {
            for i in 0..x.rows {
                total += dot_in_f64(row(a, x, i), row(b, y, i));
            }
        });
        total as f32
    };
    // Few elements are not worth waking anybody for.
    let elements: usize = pairs.iter().map(|(x, _)| x.rows * x.cols).sum();
    let values: Vec<f32> = match elements < PARALLEL {
        true => pairs.iter().map(one).collect(),
        false => pairs.par_iter().map(one).collect(),
    };
    host_mut(&mut out)[..values.len()].copy_from_slice(&values);
}

#[inline(always)]
fn dot_in_f64(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f64; 16];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for l in 0..16 {
            lanes[l] += a[l] as f64 * b[l] as f64;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| *a as f64 * *b as f64).sum();
    lanes.iter().sum::<f64>() + rest
}

/// See [`crate::backend::Backend::adam`].
pub fn adam(updates: Vec<AdamUpdate>, known: Option<Mat>, mut squares: Option<MatMut>) {
    let known = known.map(|f| row(host(f), &f, 0));
    if known.is_some_and(|f| f[0].is_nan()) {
        updates.into_iter().filter_map(|u| u.change).for_each(|mut change| super::fill(&mut change, 0.0));
        squares.iter_mut().for_each(|s| super::fill(s, 0.0));
        return;
    }
    let found: Vec<f64> = updates.into_par_iter().map(|u| adam_of_matrix(u, known)).collect();
    if let Some(squares) = &mut squares {
        host_mut(squares).iter_mut().zip(found).for_each(|(to, square)| *to = square as f32);
    }
}

/// One matrix; returns the squared norm of its change.
fn adam_of_matrix(update: AdamUpdate, known: Option<&[f32]>) -> f64 {
    let AdamUpdate { mut x, g, mut m, mut v, blocks, copy, mut change } = update;
    assert!(x.shape() == m.shape() && x.shape() == v.shape() && x.rows == g.rows, "adam");
    let (rows, cols, x_ld, m_ld, v_ld) = (x.rows, x.cols, x.ld, m.ld, v.ld);
    let change_ld = change.as_ref().map_or(0, |c| c.ld);
    let mut square = 0.0;
    let blocks: Vec<AdamBlock> = blocks.iter().map(|b| with_factors(b, known)).collect();
    {
        let gradients = host(g);
        let (xs, ms, vs) = (host_mut(&mut x), host_mut(&mut m), host_mut(&mut v));
        let mut changes = change.as_mut().map(host_mut);
        let (mut gradient, mut delta) = (vec![0f32; widest(&blocks)], vec![0f32; cols]);
        fast(|| {
            for i in 0..rows {
                for block in &blocks {
                    let columns = block.columns.clone();
                    let at = |ld: usize| i * ld + columns.start..i * ld + columns.end;
                    let g = gradient_of(block, row(gradients, &g, i), known, &mut gradient);
                    let (x, m, v) = (&mut xs[at(x_ld)], &mut ms[at(m_ld)], &mut vs[at(v_ld)]);
                    adam_row(block, g, x, m, v, &mut delta[columns.clone()]);
                }
                square += dot_in_f64(&delta, &delta);
                if let Some(changes) = &mut changes {
                    changes[i * change_ld..i * change_ld + delta.len()].copy_from_slice(&delta);
                }
            }
        });
    }
    if let Some((mut copy, factor)) = copy {
        super::copy(x.as_mat(), copy.reborrow());
        if factor != 1.0 {
            scale(copy, factor);
        }
    }
    square
}

/// The widest of some blocks.
fn widest(blocks: &[AdamBlock]) -> usize {
    blocks.iter().map(|b| b.columns.len()).max().unwrap_or(0)
}

/// A block with clipping and gate in its constants.
fn with_factors(b: &AdamBlock, known: Option<&[f32]>) -> AdamBlock {
    let factor = |at: usize| known.map_or(1.0, |f| f[at]);
    let (clip, gate) = (factor(0), b.gate.map_or(1.0, factor));
    AdamBlock { grad_scale: b.grad_scale * clip, step: b.step * gate, ..b.clone() }
}

/// A block's gradient in one row of g, its terms combined in `to`.
#[inline(always)]
fn gradient_of<'a>(b: &AdamBlock, g: &'a [f32], known: Option<&[f32]>, to: &'a mut [f32]) -> &'a [f32] {
    let width = b.columns.len();
    if b.terms == 1 {
        return &g[b.from..b.from + width];
    }
    let to = &mut to[..width];
    to.fill(0.0);
    for k in 0..b.terms {
        let (weight, from) = (known.map_or(1.0, |f| f[factors::weight(k)]), b.from + k * b.stride);
        to.iter_mut().zip(&g[from..from + width]).for_each(|(to, g)| *to += weight * g);
    }
    to
}

#[inline(always)]
fn adam_row(b: &AdamBlock, g: &[f32], x: &mut [f32], m: &mut [f32], v: &mut [f32], delta: &mut [f32]) {
    let inverse = 1.0 / b.sqrt_correction2;
    for ((((x, g), m), v), delta) in x.iter_mut().zip(g).zip(m).zip(v).zip(delta) {
        let g = g * b.grad_scale;
        *m = b.beta1 * *m + (1.0 - b.beta1) * g;
        *v = b.beta2 * *v + (1.0 - b.beta2) * g * g;
        let new = (*x * b.keep_before - b.step * (*m / (v.sqrt() * inverse + b.eps))) * b.keep_after;
        *delta = new - *x;
        *x = new;
    }
}

/// See [`crate::backend::Backend::project_rows`].
pub fn project_rows(threads: usize, pool: &HostPool, mut x: MatMut, k: Mat) {
    let mut inner = Tensor::new(Storage::Host(pool.take(x.rows * k.cols)), x.rows, k.cols, x.dtype);
    matmul(threads, inner.mat_mut(), 0.0, 1.0, x.as_mat(), Op::N, k, Op::N);
    matmul(threads, x.reborrow(), 1.0, -1.0, inner.mat(), Op::N, k, Op::T);
}

/// See [`crate::backend::Backend::project_columns`].
pub fn project_columns(threads: usize, pool: &HostPool, mut x: MatMut, k: Mat) {
    let mut inner = Tensor::new(Storage::Host(pool.take(x.cols * k.cols)), k.cols, x.cols, x.dtype);
    matmul(threads, inner.mat_mut(), 0.0, 1.0, k, Op::T, x.as_mat(), Op::N);
    matmul(threads, x.reborrow(), 1.0, -1.0, k, Op::N, inner.mat(), Op::N);
}

/// One matrix of [`crate::backend::Backend::orthonormalize_rows`]: Gram-Schmidt in f64, every row twice
/// ("twice is enough", Kahan and Parlett), so that the result is orthonormal to f32 rounding.
pub fn orthonormalize_rows(a: &mut MatMut) {
    let (rows, cols, ld) = (a.rows, a.cols, a.ld);
    let data = host_mut(a);
    let mut done: Vec<Vec<f64>> = Vec::with_capacity(rows);
    for i in 0..rows {
        let mut current: Vec<f64> = data[i * ld..i * ld + cols].iter().map(|v| *v as f64).collect();
        let before = norm(&current);
        for _ in 0..2 {
            for other in &done {
                let along = dot64(other, &current);
                for (c, o) in current.iter_mut().zip(other) {
                    *c -= along * o;
                }
            }
        }
        let after = norm(&current);
        // What is left of a dependent f32 row is rounding: a few units in the last place of its length.
        let adds = after > before * 1e-6 && after > 0.0;
        let scale = if adds { 1.0 / after } else { 0.0 };
        for (to, c) in data[i * ld..i * ld + cols].iter_mut().zip(&mut current) {
            *c *= scale;
            *to = *c as f32;
        }
        if adds {
            done.push(current);
        }
    }
}

fn norm(a: &[f64]) -> f64 {
    dot64(a, a).sqrt()
}

fn dot64(a: &[f64], b: &[f64]) -> f64 {
    fast(|| {
        let mut lanes = [0f64; 8];
        let (a_chunks, a_rest) = a.as_chunks::<8>();
        let (b_chunks, b_rest) = b.as_chunks::<8>();
        for (x, y) in a_chunks.iter().zip(b_chunks) {
            for l in 0..8 {
                lanes[l] += x[l] * y[l];
            }
        }
        lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum::<f64>()
    })
}

/// `y += alpha x`.
pub fn axpy(alpha: f32, x: Mat, mut y: MatMut) {
    assert_eq!(x.shape(), y.shape(), "axpy");
    let data = host(x);
    each_row(&mut y, |i, out| super::simd::axpy(alpha, row(data, &x, i), out));
}

/// `x *= alpha`.
pub fn scale(mut x: MatMut, alpha: f32) {
    each_row(&mut x, |_, row| row.iter_mut().for_each(|v| *v *= alpha));
}
