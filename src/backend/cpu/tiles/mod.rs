//! Products of operands rounded to bf16, with f32 sums, on a processor's tiles: Intel's AMX, from Sapphire Rapids on.
//!
//! A tile is 16 lines of 64 bytes. The instruction adds a tile of 16 by 32 values, times one of 32 by 16, to one of 16 by 16
//! sums; it takes values below the smallest normal number for zero. Of the right-hand tile each line has a pair of depths.
//! What is rounded is laid out so that tiles lie one behind the other, and a step over the depth loads four of them for
//! four products. (Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.)

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod amx {
    //! No such processor.
    pub use super::portable::{multiply, pair, row, turn_over};
    pub fn available() -> bool {
        false
    }
    pub fn configure() {}
    pub fn release() {}
}
mod portable;
mod unit;

use super::simd::fast;
use faer::reborrow::ReborrowMut;
use faer::{MatMut, MatRef};
use std::cell::RefCell;
use unit::Unit;
pub use unit::available;

/// 16 lines of 16 pairs of bf16. Tiles begin at multiples of a line of the cache: a load of a line then touches one.
#[derive(Clone, Copy, PartialEq, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Tile([[u32; LINES]; LINES]);

/// 32 by 32 sums.
#[repr(C, align(64))]
struct Sums([f32; STEP * STEP]);

/// Lines of a tile.
const LINES: usize = 16;
/// Rows and columns that are computed at once: two tiles each way.
const STEP: usize = 2 * LINES;
/// Depth of a tile.
const TILE_DEPTH: usize = 32;
/// Depth that is summed in tiles, and rows of the left-hand side and columns of the right-hand one beside it: 1.3 MB, most of a
/// core's second cache.
const DEPTH: usize = 512;
const ROWS: usize = 1024;
const COLUMNS: usize = 256;

/// What a line of a tile is.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// A row, in pairs of depths: the left-hand side.
    Rows,
    /// A pair of depths, of every row: the right-hand side, whose rows are the product's columns.
    Depths,
}

/// `c (+)= alpha a b` on the calling thread, of a and b rounded to bf16 (to nearest, ties to even). Rows of c lie in one piece,
/// and rows or columns of a and of b. A sum depends on nothing but its row, its column, and the depth.
pub fn product(c: MatMut<f32>, add: bool, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    ROOM.with_borrow_mut(|room| product_in(room, c, add, alpha, a, b));
}

thread_local! {
    /// A thread's packed operands: as much as it has ever needed. Small products are too many to ask the pool for each.
    static ROOM: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
}

fn product_in(
    room: &mut Vec<Tile>,
    mut c: MatMut<f32>,
    add: bool,
    alpha: f32,
    a: MatRef<f32>,
    b: MatRef<f32>,
) {
    let (rows, columns, depth) = (a.nrows(), b.ncols(), a.ncols());
    let in_pieces = |m: MatRef<f32>| m.row_stride() == 1 || m.col_stride() == 1;
    assert!(c.col_stride() == 1 && in_pieces(a) && in_pieces(b), "rows or columns in one piece");
    let lines = |size: usize, most: usize| size.min(most).next_multiple_of(STEP) / LINES;
    let tiles = depth.min(DEPTH).div_ceil(TILE_DEPTH);
    let (high, wide) = (lines(rows, ROWS) * tiles, lines(columns, COLUMNS) * tiles);
    if room.len() < high + wide {
        room.resize(high + wide, bytemuck::Zeroable::zeroed());
    }
    let (left, right) = room.split_at_mut(high);
    let (unit, mut sums) = (Unit::new(), Sums([0.0; STEP * STEP]));
    for from in (0..depth).step_by(DEPTH) {
        let deep = DEPTH.min(depth - from);
        let tiles = deep.div_ceil(TILE_DEPTH);
        let add = add || from > 0;
        for top in (0..rows).step_by(ROWS) {
            let high = ROWS.min(rows - top);
            let left = pack(&unit, a.submatrix(top, from, high, deep), Order::Rows, left);
            for first in (0..columns).step_by(COLUMNS) {
                let wide = COLUMNS.min(columns - first);
                let b = b.submatrix(from, first, deep, wide).transpose();
                let right = pack(&unit, b, Order::Depths, right);
                // Rows outside: what is written next to each other is written soon after each other.
                for (row, a) in (0..).step_by(STEP).zip(left.chunks_exact(2 * tiles)) {
                    for (column, b) in (0..).step_by(STEP).zip(right.chunks_exact(2 * tiles)) {
                        unit.multiply(a.split_at(tiles), b.split_at(tiles), &mut sums);
                        let (high, wide) = (STEP.min(high - row), STEP.min(wide - column));
                        let to = c.rb_mut().submatrix_mut(top + row, first + column, high, wide);
                        write(to, add, alpha, &sums);
                    }
                }
            }
        }
    }
}

fn write(c: MatMut<f32>, add: bool, alpha: f32, sums: &Sums) {
    fast!(|| {
        for (to, from) in c.row_iter_mut().zip(sums.0.chunks_exact(STEP)) {
            let to = to.try_as_row_major_mut().map(|row| row.as_slice_mut()).unwrap_or_default();
            let pairs = to.iter_mut().zip(from);
            if add {
                pairs.for_each(|(to, sum)| *to += alpha * sum)
            } else {
                pairs.for_each(|(to, sum)| *to = alpha * sum)
            }
        }
    });
}

/// Rounds rows into lines of tiles, each as long as the rows are; zeros beyond the last row, up to whole steps, and beyond the
/// last depth. Goes along what lies in one piece, and turns tiles over where that is not their order.
fn pack<'a>(unit: &Unit, rows: MatRef<f32>, order: Order, to: &'a mut [Tile]) -> &'a [Tile] {
    let (height, depth) = (rows.nrows(), rows.ncols());
    let (lines, tiles) = (height.next_multiple_of(STEP) / LINES, depth.div_ceil(TILE_DEPTH));
    let to = &mut to[..lines * tiles];
    if rows.col_stride() == 1 {
        let row = |at: usize| {
            let row = (at < height).then(|| rows.row(at).try_as_row_major()).flatten();
            row.map_or(&[][..], |row| row.as_slice())
        };
        for (line, to) in to.chunks_exact_mut(tiles).enumerate() {
            (0..LINES).for_each(|at| unit.row(row(line * LINES + at), at, to));
            if order == Order::Depths {
                to.iter_mut().for_each(|tile| unit.turn_over(tile));
            }
        }
    } else {
        let column = |at: usize| {
            let column = (at < depth).then(|| rows.col(at).try_as_col_major()).flatten();
            column.map_or(&[][..], |column| column.as_slice())
        };
        for at in 0..tiles {
            for pair in 0..LINES {
                let first = at * TILE_DEPTH + 2 * pair;
                unit.pair([column(first), column(first + 1)], pair, to[at..].iter_mut().step_by(tiles));
            }
            if order == Order::Rows {
                to[at..].iter_mut().step_by(tiles).for_each(|tile| unit.turn_over(tile));
            }
        }
    }
    to
}

/// Sixteen values from a place on; zeros beyond the last.
#[inline(always)]
fn padded(values: &[f32], from: usize) -> [f32; LINES] {
    if let Some(Some(whole)) = values.get(from..).map(<[f32]>::first_chunk) {
        return *whole;
    }
    let rest = values.get(from..).unwrap_or_default();
    std::array::from_fn(|at| rest.get(at).copied().unwrap_or_default())
}
