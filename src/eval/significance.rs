//! Whether a difference between two runs is more than luck: paired randomisation, bootstrap, Holm.
//!
//! Random decisions are pure functions of (seed, resample): same input, same p-value, on every machine.

use crate::random::{self, Purpose};
use rand::{Rng, RngExt};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Up to so many pairs, all sign patterns are tried instead of a sample of them.
const EXACT_PAIRS: usize = 16;

/// A paired comparison.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Mean of the differences, second minus first.
    pub difference: f64,
    /// Bootstrap percentile interval of the mean difference.
    pub interval: (f64, f64),
    /// Two-sided p-value of the randomisation test.
    pub p: f64,
    /// Pairs compared.
    pub pairs: usize,
}

/// Compares two runs on the same requests, value by value (of the shorter length, if they differ).
pub fn compare(first: &[f64], second: &[f64], resamples: usize, confidence: f64, seed: u64) -> Comparison {
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| b - a).collect();
    Comparison {
        difference: mean(&differences),
        interval: bootstrap(&differences, resamples, confidence, seed),
        p: randomisation(&differences, resamples, seed),
        pairs: differences.len(),
    }
}

/// Two-sided p-value of Fisher's randomisation test for paired differences: how often the mean is at least as
/// far from 0 when every difference's sign is a coin's. Exact (all patterns) up to 16 pairs; otherwise
/// `(1 + extreme) / (1 + resamples)`, which never says 0. No pairs: 1.
pub fn randomisation(differences: &[f64], resamples: usize, seed: u64) -> f64 {
    if differences.is_empty() {
        return 1.0;
    }
    let observed = differences.iter().sum::<f64>().abs();
    // Sums that are equal in exact arithmetic must not differ by rounding.
    let slack = 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let extreme = |signs: &dyn Fn(usize) -> bool| {
        let sum: f64 = differences.iter().enumerate().map(|(i, d)| if signs(i) { -d } else { *d }).sum();
        sum.abs() >= observed - slack
    };
    if differences.len() <= EXACT_PAIRS {
        let patterns = 1u32 << differences.len();
        let count = (0..patterns).into_par_iter().filter(|p| extreme(&|i| p >> i & 1 == 1)).count();
        return count as f64 / f64::from(patterns);
    }
    let words = differences.len().div_ceil(64);
    let count = (0..resamples as u64)
        .into_par_iter()
        .filter(|resample| {
            let mut stream = random::stream(seed, Purpose::Resampling, *resample, 0);
            let bits: Vec<u64> = (0..words).map(|_| stream.next_u64()).collect();
            extreme(&|i| bits[i / 64] >> (i % 64) & 1 == 1)
        })
        .count();
    (1 + count) as f64 / (1 + resamples) as f64
}

/// Bootstrap percentile interval of the mean: `confidence` (such as 0.95) of the resampled means lie in it.
/// No values: (0, 0).
pub fn bootstrap(values: &[f64], resamples: usize, confidence: f64, seed: u64) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut means: Vec<f64> = (0..resamples.max(1) as u64)
        .into_par_iter()
        .map(|resample| {
            let mut stream = random::stream(seed, Purpose::Resampling, resample, 1);
            let sum: f64 = (0..values.len()).map(|_| values[stream.random_range(0..values.len())]).sum();
            sum / values.len() as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - confidence.clamp(0.0, 1.0)) / 2.0;
    (quantile(&means, tail), quantile(&means, 1.0 - tail))
}

/// Holm's adjusted p-values (Holm 1979), in the order given: below alpha where the family-wise error of all
/// comparisons together stays below alpha.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut most) = (vec![0.0; p.len()], 0f64);
    for (rank, index) in order.into_iter().enumerate() {
        most = most.max(p[index] * (p.len() - rank) as f64).min(1.0);
        adjusted[index] = most;
    }
    adjusted
}

/// The q-quantile of sorted values, interpolated linearly (numpy's default). There must be some.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
