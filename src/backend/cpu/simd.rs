//! The few inner loops that everything else is made of, compiled for the machine they run on.
//!
//! [`fast!`] runs a closure compiled for the best instruction set at hand (AVX2, NEON, or the baseline; AVX-512 is the
//! GEMM library's); whatever it calls must be `#[inline(always)]`. Sums use a fixed number of lanes, so the result
//! does not depend on the instruction set's width.

use std::sync::LazyLock;

static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs a closure compiled for the machine's instruction set. A macro, because the closure must be inlined where that is
/// known: of its own accord the compiler leaves a long one outside, compiled for the baseline.
macro_rules! fast {
    (|| $body:expr) => {
        $crate::backend::cpu::simd::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}
pub(super) use fast;

/// What [`fast!`] calls.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    ARCH.dispatch(f)
}

const LANES: usize = 16;

/// `<a, b>` with 16 partial sums.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a, b) = (&a[..a.len().min(b.len())], &b[..a.len().min(b.len())]);
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for l in 0..LANES {
            lanes[l] += x[l] * y[l];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sum_lanes(lanes) + rest
}

/// The sum of all elements with 16 partial sums.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for x in chunks {
        for l in 0..LANES {
            lanes[l] += x[l];
        }
    }
    sum_lanes(lanes) + rest.iter().sum::<f32>()
}

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    fold_lanes(lanes, |a, b| a + b)
}

/// The lanes by halves: the first half with the second, and so on.
#[inline(always)]
fn fold_lanes(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = f(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `y += alpha x`.
#[inline(always)]
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}

/// The largest element (negative infinity for none).
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for x in chunks {
        for l in 0..LANES {
            lanes[l] = if x[l] > lanes[l] { x[l] } else { lanes[l] };
        }
    }
    let most = fold_lanes(lanes, |a, b| if b > a { b } else { a });
    rest.iter().copied().fold(most, f32::max)
}

/// e^x to within 2 units in the last place, without a call, so that loops over it vectorise
/// (argument reduction by ln 2 and a polynomial of degree 6, as in Cephes' `expf`).
/// Below -87.3 the result is the smallest normal number's neighbourhood (practically 0); NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low bits
    let clamped = x.clamp(-87.33, 88.37);
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * 0.693_359_4;
    let r = r + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    let power = f32::from_bits(((shifted.to_bits() as i32 - MAGIC.to_bits() as i32 + 127) << 23) as u32);
    let result = value * power;
    if x < -103.97 { 0.0 } else { result }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh(x), through [`exp`].
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    2.0 * sigmoid(2.0 * x) - 1.0
}
