//! [`crate::backend::Rope`].

use super::host;
use super::rows::each_row;
use crate::backend::Rope;

pub fn rope(op: Rope) {
    let Rope { mut x, positions, inv_freq, heads, inverse } = op;
    let half = inv_freq.cols;
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
