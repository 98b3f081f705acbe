//! Operations that go row by row: tables, norms, rotary embedding, activations.

use super::simd::{axpy, dot, exp, fast, sigmoid, sum, tanh};
use super::{host, host_mut};
use crate::backend::{Activation, Indices, Mat, MatMut, RowGroups};
use rayon::prelude::*;
use std::ops::Range;

/// Rows handed to a thread at once: enough work to pay for the hand-off.
pub fn rows_per_task(cols: usize) -> usize {
    (32 * 1024 / cols.max(1)).max(1)
}

/// Calls `f(i, row)` for every row of `to`, in parallel where it pays.
pub fn each_row(to: &mut MatMut, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    let (rows, cols, ld) = (to.rows, to.cols, to.ld);
    if rows == 0 || cols == 0 {
        return;
    }
    let block = rows_per_task(cols);
    let data = host_mut(to);
    if rows <= block {
        fast(|| data.chunks_mut(ld).enumerate().for_each(|(i, row)| f(i, &mut row[..cols])));
        return;
    }
    data.par_chunks_mut(ld * block).enumerate().for_each(|(b, chunk)| {
        fast(|| chunk.chunks_mut(ld).enumerate().for_each(|(i, row)| f(b * block + i, &mut row[..cols])));
    });
}

/// Row i of a view.
#[inline(always)]
pub fn row<'a>(data: &'a [f32], m: &Mat, i: usize) -> &'a [f32] {
    &data[i * m.ld..i * m.ld + m.cols]
}

/// See [`crate::backend::Backend::embed`] (and `gather_rows`, with scale 1).
pub fn gather(from: Mat, ids: &[u32], scale: f32, mut to: MatMut) {
    assert_eq!((ids.len(), from.cols), to.shape(), "gather");
    let data = host(from);
    each_row(&mut to, |i, out| {
        for (y, x) in out.iter_mut().zip(row(data, &from, ids[i] as usize)) {
            *y = scale * x;
        }
    });
}

/// See [`crate::backend::Backend::scatter_add_rows`].
pub fn scatter_add(from: Mat, groups: &RowGroups, scale: f32, first_row: usize, mut to: MatMut) {
    let data = host(from);
    let (ld, cols) = (to.ld, to.cols);
    let out = host_mut(&mut to);
    for (g, &target) in groups.rows.host.iter().enumerate() {
        let Some(target) = (target as usize).checked_sub(first_row) else { continue };
        let sources = groups.offsets.host[g] as usize..groups.offsets.host[g + 1] as usize;
        for &source in &groups.sources.host[sources] {
            axpy(scale, row(data, &from, source as usize), &mut out[target * ld..target * ld + cols]);
        }
    }
}

/// See [`crate::backend::Backend::rmsnorm`].
pub fn rmsnorm(
    x: Mat,
    residual: Option<(Mat, MatMut)>,
    w: Mat,
    eps: f32,
    mut y: MatMut,
    mut inv_rms: MatMut,
) {
    assert!(x.shape() == y.shape() && w.cols == x.cols && inv_rms.rows == x.rows, "rmsnorm");
    let weight = host(w);
    let inverse = |s: &[f32]| 1.0 / (dot(s, s) / s.len() as f32 + eps).sqrt();
    let normalise = |s: &[f32], inv: f32, out: &mut [f32]| {
        for ((y, s), w) in out.iter_mut().zip(s).zip(weight) {
            *y = w * (s * inv);
        }
    };
    if let Some((r, mut total)) = residual {
        let (a, b) = (host(x), host(r));
        each_row(&mut total, |i, out| {
            for ((s, x), r) in out.iter_mut().zip(row(a, &x, i)).zip(row(b, &r, i)) {
                *s = x + r;
            }
        });
        finish(total.as_mat(), &mut y, &mut inv_rms, inverse, normalise);
    } else {
        finish(x, &mut y, &mut inv_rms, inverse, normalise);
    }

    fn finish(
        s: Mat,
        y: &mut MatMut,
        inv_rms: &mut MatMut,
        inverse: impl Fn(&[f32]) -> f32 + Sync + Send,
        normalise: impl Fn(&[f32], f32, &mut [f32]) + Sync + Send,
    ) {
        let data = host(s);
        let ld = inv_rms.ld;
        let inv = host_mut(inv_rms);
        fast(|| (0..s.rows).for_each(|i| inv[i * ld] = inverse(row(data, &s, i))));
        let inv = &*inv;
        each_row(y, |i, out| normalise(row(data, &s, i), inv[i * ld], out));
    }
}

/// See [`crate::backend::Backend::rmsnorm_backward`].
pub fn rmsnorm_backward(
    s: Mat,
    w: Mat,
    inv_rms: Mat,
    dy: Mat,
    mut dx: MatMut,
    accumulate: bool,
    dw: Option<(&[Range<usize>], MatMut)>,
) {
    assert!(s.shape() == dy.shape() && s.shape() == dx.shape() && w.cols == s.cols, "rmsnorm_backward");
    let (data, weight, inv, grad) = (host(s), host(w), host(inv_rms), host(dy));
    each_row(&mut dx, |i, out| {
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
    if let Some((segments, mut dw)) = dw {
        let (ld, cols) = (dw.ld, dw.cols);
        let out = host_mut(&mut dw);
        fast(|| {
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

/// See [`crate::backend::Backend::rope`].
pub fn rope(mut x: MatMut, positions: &Indices, inv_freq: Mat, heads: usize, inverse: bool) {
    let half = inv_freq.cols;
    assert_eq!(x.cols, heads * 2 * half, "rope: {} columns, {heads} heads of {}", x.cols, 2 * half);
    let frequencies = host(inv_freq);
    let sign = if inverse { -1.0 } else { 1.0 };
    each_row(&mut x, |i, row| {
        let position = positions.host[i] as f32;
        for (j, frequency) in frequencies[..half].iter().enumerate() {
            let (sin, cos) = (position * frequency).sin_cos();
            let sin = sign * sin;
            for head in 0..heads {
                let at = head * 2 * half + j;
                let (a, b) = (row[at], row[at + half]);
                row[at] = a * cos - b * sin;
                row[at + half] = b * cos + a * sin;
            }
        }
    });
}

const GELU_C: f32 = 0.797_884_6; // sqrt(2 / pi)
const GELU_A: f32 = 0.044_715;

/// A nonlinearity: its value and its derivative. One type each, so that the loops over them vectorise.
trait Nonlinearity {
    fn value(x: f32) -> f32;
    fn derivative(x: f32) -> f32;
}

struct Silu;
struct Relu;
struct GeluTanh;

impl Nonlinearity for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }
    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

impl Nonlinearity for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.max(0.0)
    }
    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        f32::from(x > 0.0)
    }
}

impl Nonlinearity for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + tanh(GELU_C * (x + GELU_A * x * x * x)))
    }
    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let t = tanh(GELU_C * (x + GELU_A * x * x * x));
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_C * (1.0 + 3.0 * GELU_A * x * x)
    }
}

/// See [`crate::backend::Backend::activation`].
pub fn activation(kind: Activation, gate: Mat, up: Option<Mat>, y: MatMut) {
    match kind {
        Activation::Silu => activate::<Silu>(gate, up, y),
        Activation::Relu => activate::<Relu>(gate, up, y),
        Activation::GeluTanh => activate::<GeluTanh>(gate, up, y),
    }
}

fn activate<A: Nonlinearity>(gate: Mat, up: Option<Mat>, mut y: MatMut) {
    assert!(gate.shape() == y.shape() && up.is_none_or(|u| u.shape() == gate.shape()), "activation");
    let g = host(gate);
    let u = up.map(|u| (host(u), u));
    each_row(&mut y, |i, out| {
        let gate = row(g, &gate, i);
        match &u {
            Some((data, up)) => {
                for ((y, g), u) in out.iter_mut().zip(gate).zip(row(data, up, i)) {
                    *y = A::value(*g) * u;
                }
            }
            None => {
                for (y, g) in out.iter_mut().zip(gate) {
                    *y = A::value(*g);
                }
            }
        }
    });
}

/// See [`crate::backend::Backend::activation_backward`].
pub fn activation_backward(
    kind: Activation,
    gate: Mat,
    up: Option<Mat>,
    dy: Mat,
    dgate: MatMut,
    dup: Option<MatMut>,
) {
    match kind {
        Activation::Silu => activate_backward::<Silu>(gate, up, dy, dgate, dup),
        Activation::Relu => activate_backward::<Relu>(gate, up, dy, dgate, dup),
        Activation::GeluTanh => activate_backward::<GeluTanh>(gate, up, dy, dgate, dup),
    }
}

fn activate_backward<A: Nonlinearity>(
    gate: Mat,
    up: Option<Mat>,
    dy: Mat,
    mut dgate: MatMut,
    dup: Option<MatMut>,
) {
    assert!(gate.shape() == dy.shape() && dgate.shape() == dy.shape(), "activation_backward");
    let (g, d) = (host(gate), host(dy));
    let u = up.map(|u| (host(u), u));
    each_row(&mut dgate, |i, out| {
        let (gate, dy) = (row(g, &gate, i), row(d, &dy, i));
        match &u {
            Some((data, up)) => {
                for (((o, g), dy), u) in out.iter_mut().zip(gate).zip(dy).zip(row(data, up, i)) {
                    *o = A::derivative(*g) * dy * u;
                }
            }
            None => {
                for ((o, g), dy) in out.iter_mut().zip(gate).zip(dy) {
                    *o = A::derivative(*g) * dy;
                }
            }
        }
    });
    if let Some(mut dup) = dup {
        each_row(&mut dup, |i, out| {
            for ((o, g), dy) in out.iter_mut().zip(row(g, &gate, i)).zip(row(d, &dy, i)) {
                *o = A::value(*g) * dy;
            }
        });
    }
}

/// See [`crate::backend::Backend::column_sums`].
pub fn column_sums(dy: Mat, segments: &[Range<usize>], mut out: MatMut) {
    let data = host(dy);
    let (ld, cols) = (out.ld, out.cols);
    let out = host_mut(&mut out);
    for (segment, rows) in segments.iter().enumerate() {
        for i in rows.clone() {
            axpy(1.0, row(data, &dy, i), &mut out[segment * ld..segment * ld + cols]);
        }
    }
}

/// Turns scores into probabilities in place; returns their log-sum-exp.
#[inline(always)]
pub fn softmax(scores: &mut [f32]) -> f32 {
    let most = super::simd::max(scores);
    if most == f32::NEG_INFINITY {
        scores.fill(0.0);
        return most;
    }
    for s in scores.iter_mut() {
        *s = exp(*s - most);
    }
    let total = sum(scores);
    let inverse = 1.0 / total;
    for s in scores.iter_mut() {
        *s *= inverse;
    }
    most + total.ln()
}
