//! k-means over many rows, to the bit what the textbook's loop gives, at a fraction of its time.
//!
//! The distance that decides is a sum of f64 squares in the order of the components, one addition after the other. Most
//! centroids are ruled out by a quick f32 sum in lanes, whose relative error is bounded; only what the bound leaves is added up.

use crate::random::{Purpose, stream};
use rand::RngExt;
use rayon::prelude::*;

/// Lloyd's algorithm from a k-means++ start, of rows `[n x dim]`: centroids `[k x dim]` and the nearest of each row. A pure
/// function of its arguments; `level` tells apart what is drawn with one `seed`.
pub(super) fn kmeans(
    rows: &[f32],
    dim: usize,
    k: usize,
    iterations: usize,
    (seed, level): (u64, u64),
) -> (Vec<f32>, Vec<u32>) {
    let mut centroids = plus_plus(rows, dim, k, (seed, level));
    let mut nearest = assign(rows, dim, &centroids);
    for _ in 0..iterations {
        centre(rows, dim, &nearest, &mut centroids);
        let moved = assign(rows, dim, &centroids);
        if moved == nearest {
            break;
        }
        nearest = moved;
    }
    (centroids, nearest)
}

/// Puts every centroid that has rows into their middle; sums are taken in the order of the rows.
fn centre(rows: &[f32], dim: usize, nearest: &[u32], centroids: &mut [f32]) {
    let mut members = vec![Vec::new(); centroids.len() / dim];
    (0..).zip(nearest).for_each(|(row, code)| members[*code as usize].push(row));
    centroids.par_chunks_exact_mut(dim).zip(members).for_each(|(centroid, members): (_, Vec<usize>)| {
        let mut sums = vec![0f64; dim];
        for row in &members {
            let row = &rows[row * dim..][..dim];
            sums.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
        }
        if !members.is_empty() {
            centroid.iter_mut().zip(sums).for_each(|(c, s)| *c = (s / members.len() as f64) as f32);
        }
    });
}

/// The nearest centroid of every row, the first of those equally near.
fn assign(rows: &[f32], dim: usize, centroids: &[f32]) -> Vec<u32> {
    let arch = pulp::Arch::new();
    let nearest = |quick: &mut Vec<f32>, row: &[f32]| {
        arch.dispatch(|| {
            quick.clear();
            quick.extend(centroids.chunks_exact(dim).map(|c| quick_distance(row, c)));
        });
        let least = quick.iter().copied().fold(f32::INFINITY, f32::min);
        let left = (0..).zip(&*quick).filter(|(_, d)| lower(**d, dim) <= upper(least, dim)).map(|(i, _)| i);
        let mut left = left.peekable();
        let first = left.next().unwrap_or(0);
        if left.peek().is_none() {
            return first as u32;
        }
        let exact = |i: usize| (i, distance(row, &centroids[i * dim..][..dim]));
        let all = std::iter::once(first).chain(left).map(exact);
        all.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i as u32)
    };
    rows.par_chunks_exact(dim).map_init(Vec::new, nearest).collect()
}

/// k-means++: each further centroid is a row drawn in proportion to its squared distance from the nearest centroid so far.
fn plus_plus(rows: &[f32], dim: usize, k: usize, (seed, level): (u64, u64)) -> Vec<f32> {
    let (n, arch) = (rows.len() / dim, pulp::Arch::new());
    let mut rng = stream(seed, Purpose::Init, 0x73656d, level);
    let mut chosen = rng.random_range(0..n);
    let mut centroids = Vec::with_capacity(k * dim);
    let mut gaps = vec![f64::INFINITY; n];
    loop {
        let centroid = &rows[chosen * dim..][..dim];
        centroids.extend_from_slice(centroid);
        if centroids.len() == k * dim {
            return centroids;
        }
        gaps.par_iter_mut().zip(rows.par_chunks_exact(dim)).for_each(|(gap, row)| {
            let quick = arch.dispatch(|| quick_distance(row, centroid));
            if lower(quick, dim) < *gap {
                *gap = gap.min(distance(row, centroid));
            }
        });
        let mut left = rng.random::<f64>() * gaps.iter().sum::<f64>();
        // Where all rows are centroids already, any row will do.
        let drawn = gaps.iter().position(|gap| {
            left -= gap;
            left < 0.0
        });
        chosen = drawn.unwrap_or(n - 1);
    }
}

/// The squared distance that decides.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| ((x - y) as f64).powi(2)).sum()
}

const LANES: usize = 32;

/// The same in f32 and in lanes.
#[inline(always)]
fn quick_distance(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (x, y) in a.iter().zip(b) {
        for lane in 0..LANES {
            let gap = x[lane] - y[lane];
            lanes[lane] += gap * gap;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| (x - y) * (x - y)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Rounding of [`quick_distance`] over the distance: one unit (2^-24) for each square, and one for each of less than
/// `dim` additions, all of them of positive numbers; doubled. Squares below the normal numbers are lost besides.
fn error(dim: usize) -> (f64, f64) {
    ((dim + 2) as f64 * f64::from(f32::EPSILON), dim as f64 * f64::from(f32::MIN_POSITIVE))
}

/// No distance is below this.
fn lower(quick: f32, dim: usize) -> f64 {
    let (relative, lost) = error(dim);
    // A square that is too large for f32 says nothing.
    if quick.is_finite() { f64::from(quick) * (1.0 - relative) - lost } else { 0.0 }
}

/// The nearest is not above this.
fn upper(quick: f32, dim: usize) -> f64 {
    let (relative, lost) = error(dim);
    f64::from(quick) * (1.0 + relative) + lost
}
