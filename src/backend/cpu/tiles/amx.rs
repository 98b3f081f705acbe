//! The instructions: AMX for products, AVX-512 (which every processor with AMX has) to round into tiles.

use super::{LINES, Sums, Tile, padded};
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_permutexvar_epi16, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
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
    let has = |name| flags.split_whitespace().any(|flag| flag == name);
    ["amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512_bf16"].into_iter().all(has)
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
    #[repr(C, align(64))]
    struct Settings([u8; 64]);
    let mut settings = Settings([0; 64]);
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
    assert!(tiles > 0 && [a.1.len(), b.0.len(), b.1.len()] == [tiles; 3], "lines of tiles of one length");
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
            sums = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// See [`super::unit::Unit::row`].
pub fn row(values: &[f32], line: usize, to: &mut [Tile]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn row(values: &[f32], line: usize, to: &mut [Tile]) {
        for (at, tile) in to.iter_mut().enumerate() {
            let from = 2 * LINES * at;
            tile.0[line] = numbers(rounded(padded(values, from), padded(values, from + LINES)));
        }
    }
    // SAFETY: `available` has found the instructions, and a `Unit` that is real calls this.
    unsafe { row(values, line, to) }
}

/// See [`super::unit::Unit::pair`].
pub fn pair<'a>(depths: [&[f32]; 2], line: usize, to: impl Iterator<Item = &'a mut Tile>) {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pair<'a>([first, second]: [&[f32]; 2], line: usize, to: impl Iterator<Item = &'a mut Tile>) {
        let alternating = alternating();
        for (at, tile) in to.enumerate() {
            let both = rounded(padded(first, LINES * at), padded(second, LINES * at));
            tile.0[line] = numbers(_mm512_permutexvar_epi16(alternating, both));
        }
    }
    // SAFETY: as in `row`.
    unsafe { pair(depths, line, to) }
}

pub fn turn_over(tile: &mut Tile) {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn turn_over(tile: &mut Tile) {
        let mut lines = [_mm512_setzero_si512(); LINES];
        for (line, from) in lines.iter_mut().zip(&tile.0) {
            *line = register(*from);
        }
        for (to, line) in tile.0.iter_mut().zip(transposed(lines)) {
            *to = numbers(line);
        }
    }
    // SAFETY: as in `row`.
    unsafe { turn_over(tile) }
}

/// 16 lines of 16 pairs.
type Lines = [__m512i; LINES];

#[target_feature(enable = "avx512f")]
fn register(line: [u32; 16]) -> __m512i {
    // SAFETY: 64 bytes, and any are numbers.
    unsafe { std::mem::transmute(line) }
}

#[target_feature(enable = "avx512f")]
fn numbers(line: __m512i) -> [u32; 16] {
    // SAFETY: 64 bytes, and any are numbers.
    unsafe { std::mem::transmute(line) }
}

/// 32 values in their order, to nearest and even; below the smallest normal number they are zero.
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(first: [f32; 16], second: [f32; 16]) -> __m512i {
    // SAFETY: 64 bytes each, and any are numbers.
    unsafe {
        let first = std::mem::transmute::<[f32; 16], __m512>(first);
        let second = std::mem::transmute::<[f32; 16], __m512>(second);
        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))
    }
}

/// Takes a value of the first half and one of the second in turn.
#[target_feature(enable = "avx512f")]
fn alternating() -> __m512i {
    const FROM: [u32; 16] = {
        let (mut from, mut at) = ([0; 16], 0);
        while at < 16 {
            from[at] = at as u32 | (16 + at as u32) << 16;
            at += 1;
        }
        from
    };
    register(FROM)
}

/// Lines and places in them change roles: by pairs of lines, by fours, then by quarters of a register.
#[target_feature(enable = "avx512f")]
fn transposed(lines: Lines) -> Lines {
    let mut twos = lines;
    for at in (0..LINES).step_by(2) {
        twos[at] = _mm512_unpacklo_epi32(lines[at], lines[at + 1]);
        twos[at + 1] = _mm512_unpackhi_epi32(lines[at], lines[at + 1]);
    }
    let mut fours = twos;
    for at in (0..LINES).step_by(4) {
        for half in 0..2 {
            let (one, other) = (twos[at + half], twos[at + half + 2]);
            fours[at + 2 * half] = _mm512_unpacklo_epi64(one, other);
            fours[at + 2 * half + 1] = _mm512_unpackhi_epi64(one, other);
        }
    }
    // Of every four lines a register has their columns c, 4 + c, 8 + c and 12 + c now, a quarter each.
    let mut result = fours;
    for c in 0..4 {
        let [a, b, x, y] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(x, y)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(x, y)];
        result[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        result[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        result[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        result[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    result
}
