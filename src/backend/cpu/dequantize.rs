//! [`crate::backend::Dequantize`], and products with a weight that is kept in codes: a few of its rows at a time.

use super::matmul::matmul;
use super::rows::each_row;
use super::{host, host_bytes};
use crate::backend::{
    Dequantize, Groups, HostPool, Levels, Mat, MatMut, Matmul, Quantised, Rounded, Storage, Tensor,
};
use half::{bf16, f16};

/// Most values of a weight that are there at a time (1 MB): they stay in a core's cache until the product has read them.
const PANEL: usize = 1 << 18;

pub fn dequantize(op: Dequantize) {
    let Dequantize { from, first_row, mut to } = op;
    let (codes, scales) = (host_bytes(&from.codes), host(from.scales.mat()));
    let zeros = from.zeros.as_ref().map(host_bytes);
    let cols = from.shape.1;
    let level = |element: usize| match &from.levels {
        Levels::Book(book) => book[usize::from(codes[element / 2] >> (4 - element % 2 * 4) & 15)],
        Levels::Byte(middle) => f32::from(codes[element]) - middle,
    };
    each_row(&mut to, |i, out| {
        let row = first_row + i;
        let mut j = 0;
        while j < cols {
            let element = row * cols + j;
            // The next elements of one group.
            let (group, end) = match &from.groups {
                Groups::Runs(run) => (element / run, (j + run - element % run).min(cols)),
                Groups::Columns { count, of } => (row * count + of.host[j] as usize, j + 1),
            };
            let (scale, zero) = (scales[group], zeros.map_or(0.0, |zeros| f32::from(zeros[group])));
            for (k, y) in out[j..end].iter_mut().enumerate() {
                *y = rounded(from.rounded, scale * (level(element + k) - zero));
            }
            j = end;
        }
    });
}

#[inline(always)]
fn rounded(to: Rounded, value: f32) -> f32 {
    match to {
        Rounded::F32 => value,
        Rounded::F16 => f16::from_f32(value).to_f32(),
        Rounded::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// `y = x Wᵀ`.
pub fn product_with_transpose(threads: usize, pool: &HostPool, x: Mat, w: &Quantised, mut y: MatMut) {
    each_panel(pool, w, |first, panel| {
        let c = y.reborrow().col_range(first..first + panel.rows);
        matmul(threads, Matmul { c, beta: 0.0, alpha: 1.0, a: x.n(), b: panel.t() });
    });
}

/// `dx = beta dx + dy W`.
pub fn product(threads: usize, pool: &HostPool, dy: Mat, w: &Quantised, beta: f32, mut dx: MatMut) {
    each_panel(pool, w, |first, panel| {
        let a = dy.col_range(first..first + panel.rows).n();
        let beta = if first == 0 { beta } else { 1.0 };
        matmul(threads, Matmul { c: dx.reborrow(), beta, alpha: 1.0, a, b: panel.n() });
    });
}

/// The weight's values, some rows after the other, each with the number of its first row.
fn each_panel(pool: &HostPool, w: &Quantised, mut f: impl FnMut(usize, Mat)) {
    let (rows, cols) = w.shape;
    let some = (PANEL / cols.max(1)).clamp(1, rows.max(1));
    let mut panel =
        Tensor::new(Storage::Host(pool.take(some * cols)), some, cols, crate::backend::DType::F32);
    for first_row in (0..rows).step_by(some) {
        let these = 0..some.min(rows - first_row);
        dequantize(Dequantize { from: w, first_row, to: panel.mat_mut().row_range(these.clone()) });
        f(first_row, panel.mat().row_range(these));
    }
}
