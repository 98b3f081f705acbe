//! Semantic ids.

use gems_engine::data::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

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
    #[test]
    fn semantic_ids_are_distinct(values in prop::collection::vec(-3i8..3, 3..60), levels in 1usize..4, codes in 1usize..9) {
        let n = values.len() / 3;
        let embeddings: Vec<f32> = values[..n * 3].iter().map(|v| *v as f32).collect();
        let ids = residual_kmeans(&embeddings, 3, levels, codes, 10, 7).unwrap();
        let distinct: BTreeSet<&[u32]> = (0..n).map(|i| ids.codes(i)).collect();
        prop_assert_eq!(distinct.len(), n);
    }
}
