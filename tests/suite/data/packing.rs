//! Packing and sampling.

use super::record;
use gems_engine::data::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn example() -> impl Strategy<Value = Example> {
    let tokens = prop::collection::vec(0u32..1000, 2..12);
    let encoder = prop::option::of(prop::collection::vec(0u32..1000, 1..9));
    (0u32..3, tokens, encoder, any::<prop::sample::Index>()).prop_map(|(task, tokens, encoder, at)| {
        let labels_from = 1 + at.index(tokens.len() - 1);
        Example { task, encoder, tokens, labels_from, ..Example::default() }
    })
}

proptest! {
    #[test]
    fn packing_partitions_the_examples(mut examples in prop::collection::vec(example(), 1..20), limit in 0usize..60, t5 in any::<bool>()) {
        for e in &mut examples {
            if t5 { e.encoder.get_or_insert_with(|| vec![1]); } else { e.encoder = None }
        }
        let limit = if limit == 0 { 0 } else { limit.max(examples.iter().map(Example::rows).max().unwrap()) };
        let batches = micro_batches(&examples, 3, limit).unwrap();
        let mut seen: Vec<(u32, Vec<u32>, Option<Vec<u32>>)> = Vec::new();
        let mut weight = 0f64;
        for batch in &batches {
            let (decoder, labels) = (&batch.decoder, &batch.labels);
            let rows = decoder.rows() + batch.encoder.as_ref().map_or(0, |e| e.rows());
            prop_assert!(limit == 0 || rows <= limit);
            // Segments follow each other and cover everything.
            let mut at = 0;
            for segment in &decoder.segments {
                prop_assert_eq!(segment.start, at);
                at = segment.end;
            }
            prop_assert_eq!(at, decoder.rows());
            prop_assert_eq!(labels.segments.last().unwrap().end, labels.rows.len());
            prop_assert!(labels.rows.windows(2).all(|w| w[0] < w[1]));
            weight += labels.weights.iter().map(|w| *w as f64).sum::<f64>();
            for s in 0..decoder.sequences() {
                let range = decoder.offsets[s] as usize..decoder.offsets[s + 1] as usize;
                let task = decoder.segments.iter().position(|t| t.contains(&range.start)).unwrap();
                // The inputs, then the target of the last row: the whole example again.
                let mut tokens = decoder.tokens[range.clone()].to_vec();
                prop_assert_eq!(&decoder.positions[range.clone()], &(0..range.len() as u32).collect::<Vec<_>>()[..]);
                let mine: Vec<usize> = (0..labels.rows.len()).filter(|l| range.contains(&(labels.rows[*l] as usize))).collect();
                for &l in &mine {
                    prop_assert!(labels.segments[task].contains(&l));
                    let row = labels.rows[l] as usize;
                    if row + 1 < range.end { prop_assert_eq!(decoder.tokens[row + 1], labels.targets[l]); }
                }
                tokens.push(labels.targets[*mine.last().unwrap()]);
                let encoder = batch.encoder.as_ref().map(|e| {
                    e.tokens[e.offsets[s] as usize..e.offsets[s + 1] as usize].to_vec()
                });
                seen.push((task as u32, tokens, encoder));
            }
        }
        prop_assert!((weight - 1.0).abs() < 1e-5);
        let mut want: Vec<_> = examples.iter().map(|e| (e.task, e.tokens.clone(), e.encoder.clone())).collect();
        want.sort();
        seen.sort();
        prop_assert_eq!(seen, want);
    }

    #[test]
    fn the_sampler_covers_every_epoch_once_and_seeks(
        targets in prop::collection::vec((0u32..2, 1usize..4), 1..40),
        whole in any::<bool>(),
        a in 1usize..7,
        b in 1usize..5,
        seed in any::<u64>(),
    ) {
        let records: Vec<Record> = targets
            .iter()
            .map(|(task, n)| record(*task, &[0], None, &(1..=*n as u32).collect::<Vec<_>>()))
            .collect();
        let tasks = ["rec".to_string(), "search".to_string()];
        let both = (0..2).all(|t| records.iter().any(|r| r.task == t));
        prop_assume!(whole || both);
        let size = if whole {
            StepSize::Whole(a)
        } else {
            StepSize::PerTask([("rec".to_string(), a), ("search".to_string(), b)].into())
        };
        let new = || Sampler::new(&records, &tasks, &size, seed).unwrap();
        let sampler = new();
        let steps = 3 * sampler.steps_per_epoch() + 2;
        let order: Vec<Vec<Pick>> = (0..steps).map(|s| sampler.batch_at(s)).collect();
        // Asked backwards, of another sampler: the same.
        let other = new();
        for s in (0..steps).rev() {
            prop_assert_eq!(&other.batch_at(s), &order[s as usize]);
        }
        // Each task's (or the whole) stream, epoch by epoch, holds every example exactly once.
        let streams: Vec<Option<u32>> = if whole { vec![None] } else { vec![Some(0), Some(1)] };
        for task in streams {
            let mine = |p: &&Pick| task.is_none_or(|t| records[p.record as usize].task == t);
            let stream: Vec<Pick> = order.iter().flatten().filter(mine).copied().collect();
            let all: BTreeSet<Pick> = records.iter().enumerate()
                .filter(|(_, r)| task.is_none_or(|t| t == r.task))
                .flat_map(|(i, r)| (0..r.target.len()).map(move |t| Pick { record: i as u32, target: t as u32 }))
                .collect();
            prop_assert!(stream.len() >= all.len());
            for epoch in stream.chunks_exact(all.len()) {
                prop_assert_eq!(&epoch.iter().copied().collect::<BTreeSet<_>>(), &all);
            }
        }
        if !whole {
            for batch in &order {
                let rec = batch.iter().filter(|p| records[p.record as usize].task == 0).count();
                prop_assert_eq!((rec, batch.len()), (a, a + b));
            }
        }
    }
}

#[test]
fn the_longest_batch_can_be_asked_for_and_too_long_is_an_error() {
    let records: Vec<Record> =
        (1..=9).map(|n| record(u32::from(n > 6), &vec![0; n], Some("q"), &[1])).collect();
    let tasks = ["rec".to_string(), "search".to_string()];
    let size = StepSize::PerTask([("rec".to_string(), 2), ("search".to_string(), 4)].into());
    let sampler = Sampler::new(&records, &tasks, &size, 1).unwrap();
    let longest = sampler.longest(|p| records[p.record as usize].bulk());
    let lengths: Vec<usize> = longest.iter().map(|p| records[p.record as usize].history.len()).collect();
    assert_eq!(lengths, [6, 5, 9, 8, 7, 9], "three search records fill a step of four");
    let long = Example { tokens: vec![1; 20], labels_from: 19, ..Example::default() };
    let error = micro_batches(&[long], 1, 10).unwrap_err().to_string();
    assert!(error.contains("19 rows") && error.contains("micro_batch_tokens"), "{error}");
}

#[test]
fn impossible_steps_are_refused() {
    let records = [record(0, &[1], None, &[2])];
    let tasks = ["rec".to_string(), "search".to_string()];
    let error = |size: StepSize| Sampler::new(&records, &tasks, &size, 0).err().unwrap().to_string();
    assert!(error(StepSize::Whole(0)).contains("train.batch"));
    assert!(error(StepSize::PerTask([("buy".to_string(), 1)].into())).contains("unknown task `buy`"));
    assert!(error(StepSize::PerTask([("search".to_string(), 1)].into())).contains("no training records"));
    assert!(error(StepSize::PerTask([("rec".to_string(), 0)].into())).contains("without examples"));
}

#[test]
fn the_tally_counts_what_did_not_fit() {
    let mut tally = Tally::default();
    tally.add(&Example { tokens: vec![1; 5], labels_from: 4, dropped_items: 3, ..Example::default() });
    tally.add(&Example {
        tokens: vec![1; 3],
        labels_from: 1,
        encoder: Some(vec![1; 7]),
        cut_query: true,
        ..Example::default()
    });
    let want = Tally {
        examples: 2,
        rows: 13,
        labels: 3,
        shortened: 1,
        dropped_items: 3,
        cut_queries: 1,
        longest: 9,
    };
    assert_eq!(tally, want);
}
