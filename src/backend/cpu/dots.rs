//! [`crate::backend::Dots`].

use super::rows::row;
use super::simd::fast;
use super::{host, host_mut};
use crate::backend::{Dots, Mat};
use rayon::prelude::*;

/// Elements from which on threads share the work of [`dots()`].
const PARALLEL: usize = 1 << 17;

pub fn dots(op: Dots) {
    let Dots { pairs, mut out } = op;
    let one = |(x, y): &(Mat, Mat)| {
        if x.cols == 0 {
            return 0.0;
        }
        let (a, b) = (host(*x), host(*y));
        let mut total = 0f64;
        fast!(|| {
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
pub fn dot_in_f64(a: &[f32], b: &[f32]) -> f64 {
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
