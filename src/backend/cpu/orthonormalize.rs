//! [`crate::backend::OrthonormalizeRows`].

use super::host_mut;
use super::simd::fast;
use crate::backend::{MatMut, OrthonormalizeRows};
use rayon::prelude::*;

pub fn orthonormalize_rows(mut op: OrthonormalizeRows) {
    op.matrices.par_iter_mut().for_each(orthonormalize);
}

/// One matrix: Gram-Schmidt in f64, every row twice
/// ("twice is enough", Kahan and Parlett), so that the result is orthonormal to f32 rounding.
fn orthonormalize(a: &mut MatMut) {
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
    fast!(|| {
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
