//! What [`super::amx`] does, in loops: tiles at the edges of an operand; and for tests where there is no such processor,
//! all of it, slowly.

use super::{LINES, Order, STEP, Sums, TILE_DEPTH, Tile};
use faer::MatRef;

/// Rounds up to 16 rows of up to 32 depths, which lie in rows or in depths; zeros beyond.
pub fn pack(part: MatRef<f32>, order: Order, tile: &mut Tile) {
    tile.0 = [[0; LINES]; LINES];
    let given = if part.col_stride() == 1 { Order::Rows } else { Order::Depths };
    if given == Order::Rows {
        for (row, to) in part.row_iter().zip(&mut tile.0) {
            let values = padded::<TILE_DEPTH>(row.try_as_row_major().map(|row| row.as_slice()));
            for (to, [first, second]) in to.iter_mut().zip(values.as_chunks().0) {
                *to = pair(*first, *second);
            }
        }
    } else {
        let depth = part.ncols();
        let column = |at: usize| {
            let at = (at < depth).then(|| part.col(at).try_as_col_major().map(|column| column.as_slice()));
            padded::<LINES>(at.flatten())
        };
        for (to, at) in tile.0.iter_mut().zip((0..depth).step_by(2)) {
            let (first, second) = (column(at), column(at + 1));
            *to = std::array::from_fn(|line| pair(first[line], second[line]));
        }
    }
    if given != order {
        let lines = tile.0;
        tile.0 = std::array::from_fn(|line| std::array::from_fn(|at| lines[at][line]));
    }
}

fn padded<const N: usize>(values: Option<&[f32]>) -> [f32; N] {
    let (mut padded, values) = ([0.0; N], values.unwrap_or_default());
    padded[..values.len()].copy_from_slice(values);
    padded
}

fn pair(first: f32, second: f32) -> u32 {
    rounded(first) | rounded(second) << 16
}

/// The nearest bf16, of two that are as near the even one; NaN stays NaN.
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if value.is_nan() { bits | 1 << 22 } else { nearest }) >> 16
}

/// `sums = a b` of two lines of tiles each.
pub fn multiply(a: (&[Tile], &[Tile]), b: (&[Tile], &[Tile]), sums: &mut Sums) {
    sums.0.fill(0.0);
    for (i, a) in [a.0, a.1].into_iter().enumerate() {
        for (j, b) in [b.0, b.1].into_iter().enumerate() {
            a.iter().zip(b).for_each(|(a, b)| one(a, b, &mut sums.0[i * LINES * STEP + j * LINES..]));
        }
    }
}

fn one(a: &Tile, b: &Tile, sums: &mut [f32]) {
    let halves = |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)];
    for (row, a) in a.0.iter().enumerate() {
        for (a, b) in a.iter().zip(&b.0) {
            for (sum, b) in sums[row * STEP..].iter_mut().zip(b) {
                let ([a0, a1], [b0, b1]) = (halves(*a), halves(*b));
                *sum += a0 * b0;
                *sum += a1 * b1;
            }
        }
    }
}
