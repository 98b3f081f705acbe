//! Products of operands rounded to bf16, with f32 sums, on a processor's tiles: Intel's AMX, from Sapphire Rapids on.
//!
//! A tile is 16 lines of 64 bytes. The instruction adds a tile of 16 by 32 values, times one of 32 by 16, to one of 16 by 16
//! sums; it takes values below the smallest normal number for zero. Of the right-hand tile each line has a pair of depths.
//! What is rounded is laid out so that tiles lie one behind the other, and a step over the depth loads four of them for
//! four products. (Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.)

use super::simd::fast;
use crate::backend::HostPool;
use faer::reborrow::ReborrowMut;
use faer::{MatMut, MatRef};

/// 16 lines of 16 pairs of bf16.
type Tile = [u32; 256];
/// 32 by 32 sums.
type Sums = [f32; 1024];

/// Lines of a tile.
const LINES: usize = 16;
/// Rows and columns that are computed at once: two tiles each way.
const STEP: usize = 2 * LINES;
/// Depth of a tile.
const TILE_DEPTH: usize = 32;
/// Depth that is summed in tiles, and rows of the left-hand side beside it: a megabyte, half of a core's second cache.
const DEPTH: usize = 512;
const ROWS: usize = 960;

/// Whether this processor has tiles and the system lets the process use them.
pub fn available() -> bool {
    unit::available()
}

/// `c (+)= alpha a b` on the calling thread, of a and b rounded to bf16 (to nearest, ties to even). Rows of c lie in one piece,
/// and rows or columns of a and of b. A sum depends on nothing but its row, its column, and the depth.
pub fn product(pool: &HostPool, mut c: MatMut<f32>, add: bool, alpha: f32, a: MatRef<f32>, b: MatRef<f32>) {
    let (rows, columns, depth) = (a.nrows(), b.ncols(), a.ncols());
    let in_pieces = |m: MatRef<f32>| m.row_stride() == 1 || m.col_stride() == 1;
    assert!(c.col_stride() == 1 && in_pieces(a) && in_pieces(b), "rows or columns in one piece");
    let mut buffer = pool.take((ROWS + STEP) * DEPTH / 2 + LINES);
    let pairs: &mut [u32] = bytemuck::cast_slice_mut(buffer.as_mut_slice());
    let aligned = pairs.as_ptr().align_offset(64).min(LINES);
    let (left, right) = pairs[aligned..].as_chunks_mut::<256>().0.split_at_mut(ROWS * DEPTH / 512);
    let (unit, mut sums) = (unit::Unit::new(), unit::Aligned([0.0; 1024]));
    for from in (0..depth).step_by(DEPTH) {
        let deep = DEPTH.min(depth - from);
        let tiles = deep.div_ceil(TILE_DEPTH);
        let add = add || from > 0;
        for top in (0..rows).step_by(ROWS) {
            let high = ROWS.min(rows - top);
            let of_rows = a.submatrix(top, from, high, deep);
            pack(of_rows, high.next_multiple_of(STEP) / LINES, Order::Lines, left);
            for at in (0..columns).step_by(STEP) {
                let wide = STEP.min(columns - at);
                pack(b.submatrix(from, at, deep, wide).transpose(), 2, Order::Pairs, right);
                let b = right[..2 * tiles].split_at(tiles);
                for (row, a) in
                    (top..).step_by(STEP).zip(left.chunks_exact(2 * tiles)).take(high.div_ceil(STEP))
                {
                    unit.multiply(a.split_at(tiles), b, &mut sums.0);
                    let to = c.rb_mut().submatrix_mut(row, at, STEP.min(top + high - row), wide);
                    write(to, add, alpha, &sums.0);
                }
            }
        }
    }
}

fn write(c: MatMut<f32>, add: bool, alpha: f32, sums: &Sums) {
    fast!(|| {
        for (to, from) in c.row_iter_mut().zip(sums.chunks_exact(STEP)) {
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

/// What a line of a tile is.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// A row, in pairs of depths: the left-hand side.
    Lines,
    /// A pair of depths, of every row: the right-hand side, whose rows are the product's columns.
    Pairs,
}

/// Rounds rows into so many lines of tiles, each as long as the rows are; zeros beyond the last row and the last depth.
fn pack(rows: MatRef<f32>, count: usize, order: Order, to: &mut [Tile]) {
    let (height, depth) = (rows.nrows(), rows.ncols());
    let tiles = depth.div_ceil(TILE_DEPTH);
    fast!(|| {
        for (line, to) in to.chunks_exact_mut(tiles).take(count).enumerate() {
            let top = (line * LINES).min(height);
            for (at, to) in to.iter_mut().enumerate() {
                let from = at * TILE_DEPTH;
                let part = rows.submatrix(top, from, LINES.min(height - top), TILE_DEPTH.min(depth - from));
                *to = packed(part, order);
            }
        }
    });
}

#[inline(always)]
fn packed(part: MatRef<f32>, order: Order) -> Tile {
    let mut tile = [0; 256];
    let given = if part.col_stride() == 1 { Order::Lines } else { Order::Pairs };
    if given == Order::Lines {
        for (row, to) in part.row_iter().zip(tile.chunks_exact_mut(LINES)) {
            let values = padded::<TILE_DEPTH>(row.try_as_row_major().map(|row| row.as_slice()));
            for (to, pair) in to.iter_mut().zip(values.chunks_exact(2)) {
                *to = rounded(pair[0]) | rounded(pair[1]) << 16;
            }
        }
    } else {
        let depth = part.ncols();
        let column = |at: usize| {
            let at = (at < depth).then(|| part.col(at).try_as_col_major().map(|column| column.as_slice()));
            padded::<LINES>(at.flatten())
        };
        for (to, at) in tile.chunks_exact_mut(LINES).zip((0..depth).step_by(2)) {
            let (first, second) = (column(at), column(at + 1));
            for ((to, first), second) in to.iter_mut().zip(first).zip(second) {
                *to = rounded(first) | rounded(second) << 16;
            }
        }
    }
    if given == order {
        return tile;
    }
    std::array::from_fn(|at| tile[at % LINES * LINES + at / LINES])
}

#[inline(always)]
fn padded<const N: usize>(values: Option<&[f32]>) -> [f32; N] {
    let (mut padded, values) = ([0.0; N], values.unwrap_or_default());
    padded[..values.len()].copy_from_slice(values);
    padded
}

/// The nearest bf16, of two that are as near the even one; NaN stays NaN.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if value.is_nan() { bits | 1 << 22 } else { nearest }) >> 16
}

/// What multiplies tiles: the processor's, or where it has none a loop, slow and for tests.
mod unit {
    use super::{LINES, STEP, Sums, Tile};
    use std::marker::PhantomData;

    /// Lines of tiles begin at multiples of their length: a load of one then touches one line of the cache.
    #[repr(C, align(64))]
    pub struct Aligned<T>(pub T);

    /// The calling thread's unit, made ready; at its end it is given back, so that a change of threads need not save it.
    pub struct Unit {
        real: bool,
        here: PhantomData<*const ()>, // not on another thread
    }

    impl Unit {
        pub fn new() -> Self {
            let real = available();
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            if real {
                amx::configure();
            }
            Self { real, here: PhantomData }
        }

        /// `sums = a b` of two lines of tiles each.
        pub fn multiply(&self, a: (&[Tile], &[Tile]), b: (&[Tile], &[Tile]), sums: &mut Sums) {
            if self.real {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                return amx::multiply(a, b, sums);
            }
            sums.fill(0.0);
            for (i, a) in [a.0, a.1].into_iter().enumerate() {
                for (j, b) in [b.0, b.1].into_iter().enumerate() {
                    a.iter().zip(b).for_each(|(a, b)| one(a, b, &mut sums[i * LINES * STEP + j * LINES..]));
                }
            }
        }
    }

    fn one(a: &Tile, b: &Tile, sums: &mut [f32]) {
        let halves = |pair: u32| [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)];
        for (row, a) in a.chunks_exact(LINES).enumerate() {
            for (a, b) in a.iter().zip(b.chunks_exact(LINES)) {
                for (sum, b) in sums[row * STEP..].iter_mut().zip(b) {
                    let ([a0, a1], [b0, b1]) = (halves(*a), halves(*b));
                    *sum += a0 * b0;
                    *sum += a1 * b1;
                }
            }
        }
    }

    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    pub fn available() -> bool {
        false
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub use amx::available;

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    impl Drop for Unit {
        fn drop(&mut self) {
            if self.real {
                amx::release();
            }
        }
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    mod amx {
        use super::{Aligned, Sums, Tile};
        use std::arch::asm;
        use std::ffi::c_long;
        use std::sync::LazyLock;

        pub fn available() -> bool {
            static AVAILABLE: LazyLock<bool> = LazyLock::new(|| has_tiles() && permitted());
            *AVAILABLE
        }

        /// Whether the system knows of them.
        fn has_tiles() -> bool {
            let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let flags = told.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
            ["amx_tile", "amx_bf16"].iter().all(|name| flags.split_whitespace().any(|flag| flag == *name))
        }

        /// Asks the system for the state of tiles, which a process does not have by itself.
        fn permitted() -> bool {
            unsafe extern "C" {
                fn syscall(number: c_long, ...) -> c_long;
            }
            const ARCH_PRCTL: c_long = 158;
            const REQUEST_PERMISSION: c_long = 0x1023;
            const TILE_DATA: c_long = 18;
            // SAFETY: the system's own function, with a request of two numbers; what it does not know it refuses.
            unsafe { syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0 }
        }

        /// Eight tiles of 16 lines of 64 bytes.
        pub fn configure() {
            let mut settings = Aligned([0u8; 64]);
            settings.0[0] = 1; // the palette
            for tile in 0..8 {
                settings.0[16 + 2 * tile] = 64;
                settings.0[48 + tile] = 16;
            }
            // SAFETY: `available` has found the instruction, and the system allows it; it reads the 64 bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &settings, options(nostack, preserves_flags)) }
        }

        pub fn release() {
            // SAFETY: as above; nothing of this thread is in tiles any more.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags)) }
        }

        pub fn multiply(a: (&[Tile], &[Tile]), b: (&[Tile], &[Tile]), sums: &mut Sums) {
            let tiles = a.0.len();
            assert!(
                tiles > 0 && [a.1.len(), b.0.len(), b.1.len()] == [tiles; 3],
                "lines of tiles of one length"
            );
            // SAFETY: the unit is configured as long as there is a `Unit`, which calls this; each of four lines of `tiles` tiles
            // is read from its first to its last kilobyte, and the 32 lines of `sums` are written.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "2:",
                    "tileloadd tmm4, [{a0} + {line}*1]",
                    "tileloadd tmm6, [{b0} + {line}*1]",
                    "tileloadd tmm7, [{b1} + {line}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a1} + {line}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a0}, 1024", "add {a1}, 1024", "add {b0}, 1024", "add {b1}, 1024",
                    "dec {left}", "jnz 2b",
                    "tilestored [{sums} + {row}*1], tmm0",
                    "tilestored [{sums} + {row}*1 + 64], tmm1",
                    "tilestored [{sums} + {row}*1 + 2048], tmm2",
                    "tilestored [{sums} + {row}*1 + 2112], tmm3",
                    line = in(reg) 64usize,
                    row = in(reg) 128usize,
                    a0 = inout(reg) a.0.as_ptr() => _,
                    a1 = inout(reg) a.1.as_ptr() => _,
                    b0 = inout(reg) b.0.as_ptr() => _,
                    b1 = inout(reg) b.1.as_ptr() => _,
                    left = inout(reg) tiles => _,
                    sums = in(reg) sums.as_mut_ptr(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}
