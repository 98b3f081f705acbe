//! Examples shared out among the leaves of a step, so that no leaf takes much longer than the others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The numbers of the examples of each leaf, in order. `rows`: about how many rows each example has. The longest goes
/// first, each to the leaf that has the fewest rows so far (Graham, Bounds on Multiprocessing Timing Anomalies, 1969):
/// no leaf is longer than the mean and the longest example together. Where there are as many examples as leaves, none is
/// empty.
pub fn balance(rows: &[usize], leaves: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|i| Reverse(rows[*i]));
    let mut shared = vec![Vec::new(); leaves];
    let mut filled: BinaryHeap<_> = (0..leaves).map(|leaf| Reverse((0, leaf))).collect();
    for i in order {
        let Some(Reverse((so_far, leaf))) = filled.pop() else { break };
        shared[leaf].push(i);
        filled.push(Reverse((so_far + rows[i].max(1), leaf)));
    }
    shared.iter_mut().for_each(|leaf| leaf.sort_unstable());
    shared
}
