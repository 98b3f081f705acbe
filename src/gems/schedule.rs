//! Learning rates over a run.

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// `final + (1 - final) (1 + cos(pi p)) / 2`.
    Cosine,
    /// `1 - (1 - final) p`.
    Linear,
    /// 1.
    Constant,
}

/// The factor on the learning rate of step `index` (from 0): a linear rise from 0 over `warmup` steps, then
/// `shape` in the progress p through the remaining steps of `total`
/// (transformers' `get_cosine/linear/constant_schedule_with_warmup` for `last` 0).
pub fn factor(shape: Shape, index: u64, warmup: u64, total: u64, last: f64) -> f64 {
    if index < warmup {
        return index as f64 / warmup.max(1) as f64;
    }
    let p = (index - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    match shape {
        Shape::Cosine => last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * p).cos()),
        Shape::Linear => 1.0 - (1.0 - last) * p.min(1.0),
        Shape::Constant => 1.0,
    }
}
