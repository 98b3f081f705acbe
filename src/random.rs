//! Counter-based randomness: every random decision is a pure function of (seed, purpose, indices).
//!
//! Nothing carries generator state between steps, so resuming a run seeks instead of skipping, and
//! the same seed gives the same data order, initial values and sketches on every machine.

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// What a random stream is for. Streams of different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order of training examples.
    DataOrder = 1,
    /// Gaussian test matrices of the refresh.
    Sketch = 2,
    /// Initial values (LoRA's A, new item rows, gate network, random subspaces).
    Init = 3,
    /// Stochastic rounding.
    Rounding = 4,
    /// Negative sampling and synthetic worlds.
    Data = 5,
    /// Resampling in significance tests.
    Resampling = 6,
    /// Sampling text from a model.
    Text = 7,
    /// Which general text is rehearsed.
    Rehearsal = 8,
}

/// The random stream of (`seed`, `purpose`, `a`, `b`): the same arguments, the same stream.
pub fn stream(seed: u64, purpose: Purpose, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (chunk, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, a, b]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// `n` independent standard normal numbers of the stream (`seed`, `purpose`, `a`, `b`).
pub fn normal(seed: u64, purpose: Purpose, a: u64, b: u64, n: usize) -> Vec<f32> {
    let mut rng = stream(seed, purpose, a, b);
    (0..n).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()
}

/// A random permutation of `0..n`, a pure function of its arguments (Fisher-Yates).
pub fn permutation(seed: u64, purpose: Purpose, a: u64, b: u64, n: usize) -> Vec<u32> {
    let mut rng = stream(seed, purpose, a, b);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}

/// A number in which every bit depends on all bits of `a` and `b`: for orders that are to follow nothing else
/// (the finalizer of SplitMix64, Steele et al. 2014, twice).
pub fn mixed(a: u64, b: u64) -> u64 {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    mix(mix(a.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(b).wrapping_add(0x9e37_79b9_7f4a_7c15))
}
