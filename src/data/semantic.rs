//! Semantic ids: a few codes an item, from residual k-means over item embeddings.

use super::kmeans::kmeans;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// The codes of every item: `levels` each, no two items the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SemanticIds {
    levels: usize,
    codes: Vec<u32>,
}

impl SemanticIds {
    /// Wraps codes, `levels` an item.
    ///
    /// # Errors
    /// Not a multiple of `levels`, or two items with the same codes.
    pub fn new(levels: usize, codes: Vec<u32>) -> Result<Self> {
        if levels == 0 || !codes.len().is_multiple_of(levels) {
            return Err(Error::model(format!("{} codes are not {levels} an item", codes.len())));
        }
        let mut seen: HashMap<&[u32], usize> = HashMap::new();
        for (item, code) in codes.chunks_exact(levels).enumerate() {
            if let Some(other) = seen.insert(code, item) {
                return Err(Error::model(format!("items {other} and {item} have the same codes {code:?}")));
            }
        }
        Ok(Self { levels, codes })
    }
    /// Number of items.
    pub fn len(&self) -> usize {
        self.codes.len() / self.levels
    }
    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }
    /// Codes an item, the one that tells items apart included.
    pub fn levels(&self) -> usize {
        self.levels
    }
    /// The codes of item `i`.
    pub fn codes(&self, i: usize) -> &[u32] {
        &self.codes[i * self.levels..(i + 1) * self.levels]
    }
    /// The token names of item `i`, level by level.
    pub fn names(&self, i: usize) -> impl Iterator<Item = String> + '_ {
        self.codes(i).iter().enumerate().map(|(level, code)| format!("<code_{level}_{code}>"))
    }
    /// All token names that occur, by level and code.
    pub fn token_names(&self) -> Vec<String> {
        let mut used: Vec<(usize, u32)> =
            self.codes.iter().enumerate().map(|(i, code)| (i % self.levels, *code)).collect();
        used.sort_unstable();
        used.dedup();
        used.into_iter().map(|(level, code)| format!("<code_{level}_{code}>")).collect()
    }
}

/// Residual k-means: level after level, k-means++ and Lloyd over what the levels before left of the
/// embeddings (`[items x dim]`, row-major); items that end with the same codes get one more level
/// that numbers them. A pure function of its arguments.
///
/// # Errors
/// Sizes that do not fit, or an embedding that is not finite.
pub fn residual_kmeans(
    embeddings: &[f32],
    dim: usize,
    levels: usize,
    codes: usize,
    iterations: usize,
    seed: u64,
) -> Result<SemanticIds> {
    if dim == 0 || embeddings.is_empty() || !embeddings.len().is_multiple_of(dim) || levels == 0 || codes == 0
    {
        return Err(
            Error::model(format!("{} numbers are not rows of {dim}", embeddings.len())).at("item embeddings")
        );
    }
    if let Some(at) = embeddings.iter().position(|x| !x.is_finite()) {
        return Err(Error::numeric(format!("item {} has a component {}", at / dim, embeddings[at]))
            .at("item embeddings"));
    }
    let n = embeddings.len() / dim;
    let mut residual = embeddings.to_vec();
    let mut assigned = vec![Vec::with_capacity(levels + 1); n];
    for level in 0..levels {
        let (centroids, nearest) = kmeans(&residual, dim, codes.min(n), iterations, (seed, level as u64));
        for (i, &code) in nearest.iter().enumerate() {
            assigned[i].push(code);
            let centroid = &centroids[code as usize * dim..][..dim];
            residual[i * dim..][..dim].iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
        }
    }
    SemanticIds::new(levels + usize::from(number_collisions(&mut assigned)), assigned.concat())
}

/// Adds a level that numbers the items of equal codes, if there are any.
fn number_collisions(assigned: &mut [Vec<u32>]) -> bool {
    let mut count: HashMap<Vec<u32>, u32> = HashMap::new();
    let ranks: Vec<u32> = assigned
        .iter()
        .map(|codes| {
            let next = count.entry(codes.clone()).or_default();
            *next += 1;
            *next - 1
        })
        .collect();
    let collide = ranks.iter().any(|r| *r > 0);
    if collide {
        assigned.iter_mut().zip(ranks).for_each(|(codes, rank)| codes.push(rank));
    }
    collide
}
