//! Copies, fills, scales and sums, element by element.

use super::host;
use super::rows::{each_row, row};
use crate::backend::{Axpy, Copy, Fill, Scale, Softcap};

pub fn copy(op: Copy) {
    let Copy { from, mut to } = op;
    let data = host(from);
    each_row(&mut to, |i, out| out.copy_from_slice(row(data, &from, i)));
}

pub fn fill(mut op: Fill) {
    each_row(&mut op.x, |_, row| row.fill(op.value));
}

pub fn scale(mut op: Scale) {
    each_row(&mut op.x, |_, row| row.iter_mut().for_each(|v| *v *= op.alpha));
}

pub fn softcap(mut op: Softcap) {
    let cap = op.cap;
    each_row(&mut op.x, |_, row| row.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh()));
}

pub fn axpy(op: Axpy) {
    let Axpy { alpha, x, mut y } = op;
    let data = host(x);
    each_row(&mut y, |i, out| super::simd::axpy(alpha, row(data, &x, i), out));
}
