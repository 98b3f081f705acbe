//! What [`super::amx`] does, in loops: for tests where there is no such processor. Slow.

use super::{LINES, STEP, Sums, Tile, padded};

/// See [`super::unit::Unit::row`].
pub fn row(values: &[f32], line: usize, to: &mut [Tile]) {
    for (at, tile) in to.iter_mut().enumerate() {
        let from = |pair: usize| values.get(2 * LINES * at + pair).copied().unwrap_or_default();
        tile.0[line] = std::array::from_fn(|place| beside(from(2 * place), from(2 * place + 1)));
    }
}

/// See [`super::unit::Unit::pair`].
pub fn pair<'a>([first, second]: [&[f32]; 2], line: usize, to: impl Iterator<Item = &'a mut Tile>) {
    for (at, tile) in to.enumerate() {
        let (first, second) = (padded(first, LINES * at), padded(second, LINES * at));
        tile.0[line] = std::array::from_fn(|place| beside(first[place], second[place]));
    }
}

/// Lines and places in them change roles.
pub fn turn_over(tile: &mut Tile) {
    let lines = tile.0;
    tile.0 = std::array::from_fn(|line| std::array::from_fn(|at| lines[at][line]));
}

fn beside(first: f32, second: f32) -> u32 {
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
