//! Examples shared out among the leaves of a step.

use super::{Bench, cue, record};
use crate::support::numbers;
use gems_engine::data::{Record, balance};

/// Lengths as logs have them: many short ones, a few very long ones.
fn lengths(seed: u64, n: usize) -> Vec<usize> {
    numbers(seed, n).into_iter().map(|x| 8 + (20.0 * f64::from(x).exp()) as usize).collect()
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

/// Not the rows themselves, but they grow as the rows do: by every item, and by text.
#[test]
fn what_is_balanced_grows_with_the_rows() {
    for t5 in [false, true] {
        let bench = Bench::new(t5, cue());
        let encoder = bench.encoder();
        let both = |history: &[u32], query: &str| {
            let record = record(1, history, Some(query), &[3]);
            (encoder.encode(&record, 0).unwrap().rows(), encoder.rows_about(&record, 0))
        };
        let (short, long) = (both(&[1, 2], "red shoes"), both(&[1, 2, 5, 6, 7, 8, 9], "red shoes"));
        let (rows, about) = (long.0 - short.0, long.1 - short.1);
        assert!(
            about >= 5 && rows.abs_diff(about) <= 5,
            "five items more: {rows} rows, {about} by the measure"
        );
        assert!(both(&[1, 2], "red shoes that are warm and look well").1 > short.1);
    }
}

/// Requests as logs have them: lognormal, 8 items and 3 words in the middle, at most 50 and 20.
fn requests() -> Vec<Record> {
    let spread = numbers(5, 4000);
    let drawn =
        |i: usize, middle: f64, most: usize| ((middle * f64::from(spread[i]).exp()) as usize).clamp(1, most);
    let word = |k: usize| ["red", "wool", "title", "something", "garden"][k % 5];
    let request = |i: usize| {
        let query = (0..drawn(2000 + i, 3.0, 20)).map(|k| word(i + k)).collect::<Vec<_>>().join(" ");
        let history: Vec<u32> = (0..drawn(i, 8.0, 50)).map(|k| ((i * 7 + k) % 40) as u32).collect();
        record((i % 2) as u32, &history, (i % 2 == 1).then_some(&*query), &[(i % 40) as u32])
    };
    (0..2000).map(request).collect()
}

/// Rows of the longest leaf by the mean, beside leaves by turns. `--nocapture` prints the table of docs/distributed.md.
#[test]
fn leaves_of_long_and_short_histories_are_balanced() {
    let (bench, requests) = (Bench::new(false, cue()), requests());
    let encoder = bench.encoder();
    for (leaves, examples) in [(2, 64), (4, 64), (8, 64), (16, 64), (8, 256), (16, 256)] {
        let (mut by_turns, mut balanced, mut steps) = (0.0, 0.0, 0.0);
        for step in requests.chunks_exact(examples) {
            let rows: Vec<usize> = step.iter().map(|r| encoder.encode(r, 0).unwrap().rows()).collect();
            let about: Vec<usize> = step.iter().map(|r| encoder.rows_about(r, 0)).collect();
            let longest = |leaves: Vec<Vec<usize>>| {
                let long = leaves.iter().map(|leaf| leaf.iter().map(|i| rows[*i]).sum::<usize>()).max();
                (long.unwrap() * leaves.len()) as f64 / rows.iter().sum::<usize>() as f64
            };
            by_turns += longest((0..leaves).map(|k| (k..examples).step_by(leaves).collect()).collect());
            balanced += longest(balance(&about, leaves));
            steps += 1.0;
        }
        let (by_turns, balanced) = (by_turns / steps, balanced / steps);
        println!("{examples} examples in {leaves} leaves: {by_turns:.2} by turns, {balanced:.2} balanced");
        assert!(balanced - 1.0 < (by_turns - 1.0) / 2.0, "{leaves} leaves: {balanced} instead of {by_turns}");
    }
}
