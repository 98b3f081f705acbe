//! Examples shared out among the leaves of a step.

use gems_engine::data::balance;

/// Lengths as logs have them: many short ones, a few very long ones.
fn lengths(seed: u64, n: usize) -> Vec<usize> {
    let numbers = crate::support::numbers(seed, n);
    numbers.into_iter().map(|x| 8 + (20.0 * f64::from(x).exp()) as usize).collect()
}

#[test]
fn every_example_is_in_one_leaf_and_leaves_are_of_about_equal_length() {
    for (n, leaves) in [(1, 1), (3, 4), (4, 4), (7, 3), (64, 8), (100, 7), (256, 16), (0, 2)] {
        let rows = lengths(n as u64, n);
        let shared = balance(&rows, leaves);
        assert_eq!(shared.len(), leaves);
        assert!(shared.iter().all(|leaf| leaf.is_sorted()), "examples keep their order");
        let mut all = shared.concat();
        all.sort_unstable();
        assert_eq!(all, (0..n).collect::<Vec<_>>());
        // As many leaves have something to do as can have: the published loss counts them.
        assert_eq!(shared.iter().filter(|leaf| !leaf.is_empty()).count(), n.min(leaves));
        // Graham's bound for any order in which the next example goes to the shortest leaf.
        let (total, longest) = (rows.iter().sum::<usize>(), rows.iter().copied().max().unwrap_or(0));
        let fullest = shared.iter().map(|leaf| leaf.iter().map(|i| rows[*i]).sum::<usize>()).max();
        assert!(fullest.unwrap_or(0) <= total / leaves + longest, "{n} examples in {leaves} leaves");
    }
}

/// Two of five, four, three and two in three leaves: ten is the best there is, by hand, and the longest first finds it.
#[test]
fn the_longest_go_first() {
    let rows = [2, 5, 2, 4, 3, 4, 3, 5];
    let shared = balance(&rows, 3);
    let mut filled: Vec<usize> = shared.iter().map(|leaf| leaf.iter().map(|i| rows[*i]).sum()).collect();
    filled.sort_unstable();
    assert_eq!(filled, [8, 10, 10]);
    // Lengths of nothing are shared out too.
    assert_eq!(balance(&[0, 0, 0], 3), [vec![0], vec![1], vec![2]]);
}
