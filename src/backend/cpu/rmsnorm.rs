//! [`crate::backend::Rmsnorm`] and its gradient.

use super::rows::{each_row, row};
use super::simd::{dot, fast, sum};
use super::{host, host_mut};
use crate::backend::{Mat, MatMut, PerSegment, Rmsnorm, RmsnormBackward};

pub fn rmsnorm(op: Rmsnorm) {
    let Rmsnorm { x, residual, w, eps, mut y, mut inv_rms } = op;
    if let Some((r, mut total)) = residual {
        let (a, b) = (host(x), host(r));
        each_row!(&mut total, |i, out| {
            for ((s, x), r) in out.iter_mut().zip(row(a, &x, i)).zip(row(b, &r, i)) {
                *s = x + r;
            }
        });
        normalise((total.as_mat(), w, eps), &mut y, &mut inv_rms);
    } else {
        normalise((x, w, eps), &mut y, &mut inv_rms);
    }
}

/// The rows of s over their lengths, times w.
fn normalise((s, w, eps): (Mat, Mat, f32), y: &mut MatMut, inv_rms: &mut MatMut) {
    let (data, weight) = (host(s), host(w));
    let ld = inv_rms.ld;
    let inv = host_mut(inv_rms);
    fast!(|| {
        for i in 0..s.rows {
            let s = row(data, &s, i);
            inv[i * ld] = 1.0 / (dot(s, s) / s.len() as f32 + eps).sqrt();
        }
    });
    let inv = &*inv;
    each_row!(y, |i, out| {
        let inv = inv[i * ld];
        for ((y, s), w) in out.iter_mut().zip(row(data, &s, i)).zip(weight) {
            *y = w * (s * inv);
        }
    });
}

pub fn rmsnorm_backward(op: RmsnormBackward) {
    let RmsnormBackward { s, w, inv_rms, dy, mut dx, accumulate, dw } = op;
    let (data, weight, inv, grad) = (host(s), host(w), host(inv_rms), host(dy));
    each_row!(&mut dx, |i, out| {
        let (s, dy, inv) = (row(data, &s, i), row(grad, &dy, i), inv[i * inv_rms.ld]);
        // y = w s inv, d inv / d s = -inv^3 s / n: dx = inv (w dy - s inv^2 mean(s w dy)).
        let mut lanes = [0f32; 16];
        for (j, ((s, dy), w)) in s.iter().zip(dy).zip(weight).enumerate() {
            lanes[j % 16] += s * dy * w;
        }
        let mean = sum(&lanes) * inv * inv / s.len() as f32;
        for (((o, s), dy), w) in out.iter_mut().zip(s).zip(dy).zip(weight) {
            let value = inv * (w * dy - s * mean);
            *o = if accumulate { *o + value } else { value };
        }
    });
    if let Some(PerSegment { segments, out: mut dw }) = dw {
        let (ld, cols) = (dw.ld, dw.cols);
        let out = host_mut(&mut dw);
        fast!(|| {
            for (segment, rows) in segments.iter().enumerate() {
                let out = &mut out[segment * ld..segment * ld + cols];
                for i in rows.clone() {
                    let inv = inv[i * inv_rms.ld];
                    for ((o, s), dy) in out.iter_mut().zip(row(data, &s, i)).zip(row(grad, &dy, i)) {
                        *o += s * inv * dy;
                    }
                }
            }
        });
    }
}
