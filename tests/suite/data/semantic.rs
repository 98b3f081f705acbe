//! Semantic ids.

use gems_engine::data::*;
use gems_engine::random::{Purpose, stream};
use proptest::prelude::*;
use rand::RngExt;
use std::collections::BTreeSet;

/// Squared distance: f64 squares of f32 differences, one after the other.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).fold(0.0, |sum, (x, y)| sum + f64::from(x - y).powi(2))
}

/// The textbook's residual k-means, with every distance added up: codes, `levels` an item.
fn textbook(
    rows: &[f32],
    dim: usize,
    (levels, k, iterations): (usize, usize, usize),
    seed: u64,
) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<f32>> = rows.chunks(dim).map(<[f32]>::to_vec).collect();
    let (n, k) = (rows.len(), k.min(rows.len()));
    let mut codes = vec![Vec::new(); n];
    for level in 0..levels {
        let mut draws = stream(seed, Purpose::Init, 0x73656d, level as u64);
        let mut centroids = vec![rows[draws.random_range(0..n)].clone()];
        while centroids.len() < k {
            let gap =
                |row: &Vec<f32>| centroids.iter().map(|c| distance(row, c)).fold(f64::INFINITY, f64::min);
            let gaps: Vec<f64> = rows.iter().map(gap).collect();
            let mut left = draws.random::<f64>() * gaps.iter().sum::<f64>();
            let drawn = gaps.iter().position(|gap| {
                left -= gap;
                left < 0.0
            });
            centroids.push(rows[drawn.unwrap_or(n - 1)].clone());
        }
        let assign = |centroids: &[Vec<f32>]| -> Vec<usize> {
            let nearest = |row: &Vec<f32>| {
                let better = |best: usize, c: usize| {
                    if distance(row, &centroids[c]) < distance(row, &centroids[best]) { c } else { best }
                };
                (0..k).fold(0, better)
            };
            rows.iter().map(nearest).collect()
        };
        let mut nearest = assign(&centroids);
        for _ in 0..iterations {
            for (code, centroid) in centroids.iter_mut().enumerate() {
                let members: Vec<&Vec<f32>> =
                    rows.iter().zip(&nearest).filter(|(_, c)| **c == code).map(|(row, _)| row).collect();
                let mean = |j: usize| {
                    members.iter().fold(0.0, |sum, row| sum + f64::from(row[j])) / members.len() as f64
                };
                if !members.is_empty() {
                    *centroid = (0..dim).map(|j| mean(j) as f32).collect();
                }
            }
            let moved = assign(&centroids);
            if moved == nearest {
                break;
            }
            nearest = moved;
        }
        for (i, row) in rows.iter_mut().enumerate() {
            codes[i].push(nearest[i] as u32);
            row.iter_mut().zip(&centroids[nearest[i]]).for_each(|(x, c)| *x -= c);
        }
    }
    codes
}

#[test]
fn residual_kmeans_finds_planted_clusters_and_tells_items_apart() {
    // Four far corners, each with two near positions, each of those twice: 16 items of 2 numbers.
    let mut embeddings = Vec::new();
    for corner in 0..4 {
        for near in 0..2 {
            for _ in 0..2 {
                embeddings.push(100.0 * (corner / 2) as f32 + near as f32);
                embeddings.push(100.0 * (corner % 2) as f32);
            }
        }
    }
    let ids = residual_kmeans(&embeddings, 2, 2, 4, 50, 3).unwrap();
    assert_eq!((ids.len(), ids.levels()), (16, 3), "equal embeddings need a third code");
    let distinct: BTreeSet<&[u32]> = (0..16).map(|i| ids.codes(i)).collect();
    assert_eq!(distinct.len(), 16);
    for i in 0..16 {
        for j in 0..16 {
            assert_eq!(
                i / 4 == j / 4,
                ids.codes(i)[0] == ids.codes(j)[0],
                "{i} {j}: first code is the corner"
            );
            assert_eq!(i / 2 == j / 2, ids.codes(i)[..2] == ids.codes(j)[..2], "{i} {j}");
        }
    }
    assert_eq!(ids, residual_kmeans(&embeddings, 2, 2, 4, 50, 3).unwrap());
    let error = residual_kmeans(&[1.0, f32::NAN], 1, 1, 2, 5, 0).unwrap_err().to_string();
    assert!(error.contains("item 1 has a component NaN"), "{error}");
    assert!(residual_kmeans(&[1.0, 2.0, 3.0], 2, 1, 2, 5, 0).is_err());
}

proptest! {
    /// Rows far from the origin, near each other, repeated, tiny or huge: what is ruled out quickly is never the nearest.
    #[test]
    fn residual_kmeans_is_the_textbooks_to_the_bit(
        (n, dim, seed) in (1usize..70, 1usize..70, 0u64..1000),
        (offset, size) in (prop_oneof![Just(0.0f32), Just(1e4)], prop_oneof![Just(1.0f32), Just(1e-23), Just(1e18), Just(1e25)]),
        (levels, codes) in (1usize..4, 1usize..12),
        coarse in any::<bool>(),
    ) {
        let mut draws = stream(seed, Purpose::Data, 1, 1);
        let mut number = || {
            let x = draws.random::<f32>() - 0.5;
            (offset + if coarse { (4.0 * x).round() } else { x }) * size
        };
        let embeddings: Vec<f32> = (0..n * dim).map(|_| number()).collect();
        let ids = residual_kmeans(&embeddings, dim, levels, codes, 6, seed).unwrap();
        let want = textbook(&embeddings, dim, (levels, codes, 6), seed);
        for (i, want) in want.iter().enumerate() {
            prop_assert_eq!(&ids.codes(i)[..levels], &want[..], "item {}", i);
        }
    }

    #[test]
    fn semantic_ids_are_distinct(values in prop::collection::vec(-3i8..3, 3..60), levels in 1usize..4, codes in 1usize..9) {
        let n = values.len() / 3;
        let embeddings: Vec<f32> = values[..n * 3].iter().map(|v| *v as f32).collect();
        let ids = residual_kmeans(&embeddings, 3, levels, codes, 10, 7).unwrap();
        let distinct: BTreeSet<&[u32]> = (0..n).map(|i| ids.codes(i)).collect();
        prop_assert_eq!(distinct.len(), n);
    }
}
