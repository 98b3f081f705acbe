//! Ranking quality against divergence: a method's curve over its learning rates, and two curves at equal quality.

use serde::Serialize;

/// Where a learning rate of a method ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Ranking quality: the mean over tasks of the ranking metric.
    pub quality: f64,
    /// KL(base || tuned) a token of held-out general text, in nats.
    pub kl: f64,
}

/// Places of the common range at which two curves are compared: the midpoints of so many equal parts.
const PLACES: usize = 200;

/// The log of the divergence at which a curve reaches `quality`: linear in quality between the first two neighbours, from
/// the smallest learning rate on, that have it between them. None where no two have: nothing is extrapolated.
pub fn log_kl_at(curve: &[Point], quality: f64) -> Option<f64> {
    if let Some(point) = curve.iter().find(|p| p.quality == quality) {
        return logarithm(point.kl);
    }
    let between = |pair: &&[Point]| (pair[0].quality - quality) * (pair[1].quality - quality) < 0.0;
    let pair = curve.windows(2).find(between)?;
    let share = (quality - pair[0].quality) / (pair[1].quality - pair[0].quality);
    Some((1.0 - share) * logarithm(pair[0].kl)? + share * logarithm(pair[1].kl)?)
}

/// Why a curve has nothing at a quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beyond {
    /// All of its learning rates rank worse.
    NotReached,
    /// All of its learning rates rank better.
    Surpassed,
}

/// On which side of the curve a quality lies that it does not have; `None` where it has it.
pub fn beyond(curve: &[Point], quality: f64) -> Option<Beyond> {
    match log_kl_at(curve, quality) {
        Some(_) => None,
        None if curve.iter().all(|p| p.quality > quality) => Some(Beyond::Surpassed),
        None => Some(Beyond::NotReached),
    }
}

/// How much lower `b`'s log divergence is than `a`'s at `quality`; where one of them ranks better at every learning rate,
/// a bound: as if it needed its least divergence to rank only that well, and only if it is ahead even so.
pub fn log_ratio_or_bound(a: &[Point], b: &[Point], quality: f64) -> Option<f64> {
    let least = |curve: &[Point]| curve.iter().map(|p| p.kl).min_by(f64::total_cmp).and_then(logarithm);
    match (log_kl_at(a, quality), log_kl_at(b, quality)) {
        (Some(a), Some(b)) => Some(a - b),
        (Some(a), None) if beyond(b, quality) == Some(Beyond::Surpassed) => {
            least(b).map(|b| a - b).filter(|ratio| *ratio > 0.0)
        }
        (None, Some(b)) if beyond(a, quality) == Some(Beyond::Surpassed) => {
            least(a).map(|a| a - b).filter(|ratio| *ratio < 0.0)
        }
        _ => None,
    }
}

/// The qualities that both curves reach.
pub fn common_range(a: &[Point], b: &[Point]) -> Option<(f64, f64)> {
    let range = |curve: &[Point]| {
        let each = curve.iter().map(|p| p.quality);
        each.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), q| (low.min(q), high.max(q)))
    };
    let (a, b) = (range(a), range(b));
    let (low, high) = (a.0.max(b.0), a.1.min(b.1));
    (low < high).then_some((low, high))
}

/// Mean over the qualities that both curves reach of how much lower `b`'s log divergence is than `a`'s: the measure of
/// Bjøntegaard (2001) for rate against distortion, with straight lines between points.
pub fn mean_log_ratio(a: &[Point], b: &[Point]) -> Option<f64> {
    let (low, high) = common_range(a, b)?;
    let at = |i: usize| low + (high - low) * (i as f64 + 0.5) / PLACES as f64;
    let each: Option<Vec<f64>> =
        (0..PLACES).map(|i| Some(log_kl_at(a, at(i))? - log_kl_at(b, at(i))?)).collect();
    each.map(|each| each.iter().sum::<f64>() / PLACES as f64)
}

fn logarithm(kl: f64) -> Option<f64> {
    (kl > 0.0).then(|| kl.ln())
}
