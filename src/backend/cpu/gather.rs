//! [`crate::backend::ops::Gather`] and its way back.

use super::rows::{each_row, row};
use super::simd::axpy;
use super::{host, host_mut};
use crate::backend::{Gather, ScatterAdd};

pub fn gather(op: Gather) {
    let Gather { from, rows, scale, mut to } = op;
    let data = host(from);
    each_row(&mut to, |i, out| {
        for (y, x) in out.iter_mut().zip(row(data, &from, rows.host[i] as usize)) {
            *y = scale * x;
        }
    });
}

pub fn scatter_add(op: ScatterAdd) {
    let ScatterAdd { from, groups, scale, first_row, mut to } = op;
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
