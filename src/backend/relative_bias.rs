//! T5's relative position buckets: the CPU looks one up for every pair of rows, a kernel in a table made once.

/// T5's bucket of a relative position (key minus query), as `_relative_position_bucket` in transformers.
pub fn relative_position_bucket(
    relative: i64,
    bidirectional: bool,
    buckets: usize,
    max_distance: usize,
) -> usize {
    let (mut base, mut buckets) = (0usize, buckets as i64);
    let distance = if bidirectional {
        buckets /= 2;
        if relative > 0 {
            base = buckets as usize;
        }
        relative.abs()
    } else {
        (-relative).max(0)
    };
    let exact = buckets / 2;
    if distance < exact {
        return base + distance as usize;
    }
    let ratio = (distance as f32 / exact as f32).ln() / (max_distance as f32 / exact as f32).ln();
    let large = exact + (ratio * (buckets - exact) as f32) as i64;
    base + large.min(buckets - 1) as usize
}
