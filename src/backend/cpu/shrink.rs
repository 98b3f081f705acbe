//! [`Shrink`].

use super::host;
use super::rows::each_row;
use crate::backend::{Eigenvalues, Shrink};

pub fn shrink(mut op: Shrink) {
    let Shrink { rows, cols, tau, .. } = op;
    let kept = |f: Option<f32>, c: Option<f32>| match (f, c) {
        (Some(f), Some(c)) => 1.0 / (1.0 + f64::from(tau) * f64::from(f) * f64::from(c)),
        _ => 0.0,
    };
    let along = |side: &Eigenvalues, i: usize| side.known.map(|known| host(known)[i]);
    each_row!(&mut op.x, |a, row| {
        let f = along(&rows, a);
        for (b, x) in row.iter_mut().enumerate() {
            let c = along(&cols, b);
            // Along a known direction what is kept there beyond what is kept of the others.
            let of_f = |c: Option<f32>| match f {
                Some(_) => kept(f, c) - kept(rows.rest, c),
                None => kept(rows.rest, c),
            };
            let factor = if c.is_some() { of_f(c) - of_f(cols.rest) } else { of_f(cols.rest) };
            *x = (f64::from(*x) * factor) as f32;
        }
    });
}
