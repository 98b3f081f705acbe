//! [`crate::backend::Adam`].

use super::dots::dot_in_f64;
use super::elementwise::{copy, fill, scale};
use super::rows::row;
use super::simd::fast;
use super::{host, host_mut};
use crate::backend::{Adam, AdamBlock, AdamUpdate, Copy, Fill, Scale, factors};
use rayon::prelude::*;

pub fn adam(op: Adam) {
    let Adam { updates, factors, mut squares } = op;
    let known = factors.map(|f| row(host(f), &f, 0));
    if known.is_some_and(|f| f[0].is_nan()) {
        updates.into_iter().filter_map(|u| u.change).for_each(|change| fill(Fill { x: change, value: 0.0 }));
        if let Some(x) = squares {
            fill(Fill { x, value: 0.0 });
        }
        return;
    }
    let found: Vec<f64> = updates.into_par_iter().map(|u| adam_of_matrix(u, known)).collect();
    if let Some(squares) = &mut squares {
        host_mut(squares).iter_mut().zip(found).for_each(|(to, square)| *to = square as f32);
    }
}

/// One matrix; returns the squared norm of its change.
fn adam_of_matrix(update: AdamUpdate, known: Option<&[f32]>) -> f64 {
    let AdamUpdate { mut x, g, held, mut m, mut v, blocks, copy: copy_to, mut change } = update;
    let (rows, cols, x_ld, m_ld, v_ld) = (x.rows, x.cols, x.ld, m.ld, v.ld);
    let change_ld = change.as_ref().map_or(0, |c| c.ld);
    let mut square = 0.0;
    let blocks: Vec<AdamBlock> = blocks.iter().map(|b| with_factors(b, known)).collect();
    {
        let gradients = host(g);
        let (xs, ms, vs) = (host_mut(&mut x), host_mut(&mut m), host_mut(&mut v));
        let mut changes = change.as_mut().map(host_mut);
        let (mut gradient, mut delta) = (vec![0f32; widest(&blocks)], vec![0f32; cols]);
        fast!(|| {
            for i in 0..rows {
                for block in &blocks {
                    let columns = block.columns.clone();
                    let at = |ld: usize| i * ld + columns.start..i * ld + columns.end;
                    let held = held.map(|h| &row(host(h), &h, i)[columns.clone()]);
                    let g = gradient_of(block, row(gradients, &g, i), held, known, &mut gradient);
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
    if let Some((mut to, alpha)) = copy_to {
        copy(Copy { from: x.as_mat(), to: to.reborrow() });
        if alpha != 1.0 {
            scale(Scale { x: to, alpha });
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

/// A block's gradient in one row of g, its terms and what is held combined in `to`.
#[inline(always)]
fn gradient_of<'a>(
    b: &AdamBlock,
    g: &'a [f32],
    held: Option<&[f32]>,
    known: Option<&[f32]>,
    to: &'a mut [f32],
) -> &'a [f32] {
    let width = b.columns.len();
    let one = &g[b.from..b.from + width];
    if b.terms == 1 && held.is_none() {
        return one;
    }
    let to = &mut to[..width];
    if b.terms == 1 {
        to.copy_from_slice(one);
    } else {
        to.fill(0.0);
        for k in 0..b.terms {
            let (weight, from) = (known.map_or(1.0, |f| f[factors::weight(k)]), b.from + k * b.stride);
            to.iter_mut().zip(&g[from..from + width]).for_each(|(to, g)| *to += weight * g);
        }
    }
    for (to, held) in to.iter_mut().zip(held.unwrap_or_default()) {
        *to += b.held * held;
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
