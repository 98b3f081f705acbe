//! The method's own operations: dot products, Adam, projections, orthonormal rows.

use super::products::matmul;
use super::rows::{each_row, row};
use super::simd::fast;
use super::{host, host_mut};
use crate::backend::{AdamBlock, HostPool, Mat, MatMut, Op, Storage, Tensor};
use rayon::prelude::*;

/// See [`crate::backend::Backend::dots`].
pub fn dots(pairs: &[(Mat, Mat)], mut out: MatMut) {
    let values: Vec<f32> = pairs
        .par_iter()
        .map(|(x, y)| {
            assert_eq!(x.shape(), y.shape(), "dots");
            let (a, b) = (host(*x), host(*y));
            let mut total = 0f64;
            fast(|| {
                for i in 0..x.rows {
                    total += dot_in_f64(row(a, x, i), row(b, y, i));
                }
            });
            total as f32
        })
        .collect();
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

/// See [`crate::backend::Backend::adam`] and [`AdamBlock`].
pub fn adam(
    mut x: MatMut,
    g: Mat,
    mut m: MatMut,
    mut v: MatMut,
    blocks: &[AdamBlock],
    copy: Option<MatMut>,
    mut change: Option<MatMut>,
) {
    assert!(x.shape() == g.shape() && x.shape() == m.shape() && x.shape() == v.shape(), "adam");
    let (rows, x_ld, m_ld, v_ld) = (x.rows, x.ld, m.ld, v.ld);
    let change_ld = change.as_ref().map_or(0, |c| c.ld);
    if let Some(change) = &mut change {
        super::fill(change, 0.0);
    }
    {
        let gradient = host(g);
        let (xs, ms, vs) = (host_mut(&mut x), host_mut(&mut m), host_mut(&mut v));
        let mut deltas = change.as_mut().map(host_mut);
        fast(|| {
            for i in 0..rows {
                for block in blocks {
                    let columns = block.columns.clone();
                    let at = |ld: usize| i * ld + columns.start..i * ld + columns.end;
                    let (x, m, v) = (&mut xs[at(x_ld)], &mut ms[at(m_ld)], &mut vs[at(v_ld)]);
                    adam_row(
                        block,
                        &gradient[at(g.ld)],
                        x,
                        m,
                        v,
                        deltas.as_mut().map(|d| &mut d[at(change_ld)]),
                    );
                }
            }
        });
    }
    if let Some(copy) = copy {
        super::copy(x.as_mat(), copy);
    }
}

#[inline(always)]
fn adam_row(
    b: &AdamBlock,
    g: &[f32],
    x: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    change: Option<&mut [f32]>,
) {
    let inverse = 1.0 / b.sqrt_correction2;
    let mut next = |j: usize, x: f32| {
        let g = g[j] * b.grad_scale;
        m[j] = b.beta1 * m[j] + (1.0 - b.beta1) * g;
        v[j] = b.beta2 * v[j] + (1.0 - b.beta2) * g * g;
        (x * b.keep_before - b.step * (m[j] / (v[j].sqrt() * inverse + b.eps))) * b.keep_after
    };
    match change {
        Some(change) => {
            for (j, (x, change)) in x.iter_mut().zip(change).enumerate() {
                let new = next(j, *x);
                *change = new - *x;
                *x = new;
            }
        }
        None => {
            for (j, x) in x.iter_mut().enumerate() {
                *x = next(j, *x);
            }
        }
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
