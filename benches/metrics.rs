//! All metrics, slices and coverage of a million ranked lists.

use criterion::{Criterion, criterion_group, criterion_main};
use gems_engine::data::{Record, Split};
use gems_engine::eval::metrics::Place;
use gems_engine::eval::slices::{by_slice, coverage, popularity};
use gems_engine::eval::{EvaluateSettings, Ranked, Rankings};
use std::hint::black_box;
use std::time::Duration;

const LISTS: usize = 1_000_000;
const ITEMS: usize = 50_000;

/// Lists of twenty items and one to three targets, whose places are spread over the catalogue.
fn world() -> (Rankings, Split) {
    let spread = |i: usize, by: usize, n: usize| (i.wrapping_mul(by) >> 3) % n;
    let request = |i: usize| Ranked {
        record: i,
        task: (i % 2) as u32,
        top: (0..20).map(|p| (spread(i + p * 7, 2_654_435_761, ITEMS) as u32, -(p as f32))).collect(),
        places: (0..1 + i % 3)
            .map(|t| Place::alone(spread(i + t, 40_503, if i.is_multiple_of(2) { 30 } else { ITEMS })))
            .collect(),
        is_cut: false,
        candidates: ITEMS,
        sampled: Vec::new(),
    };
    let record = |i: usize| Record {
        task: (i % 2) as u32,
        history: vec![0; i % 25].into(),
        target: (0..1 + i % 3).map(|t| spread(i + t, 97, ITEMS) as u32).collect(),
        ..Record::default()
    };
    let records = (0..LISTS).map(record).collect();
    (Rankings { requests: (0..LISTS).map(request).collect() }, Split { name: "test".into(), records })
}

fn lists(c: &mut Criterion) {
    let (rankings, split) = world();
    let (settings, tasks) = (EvaluateSettings::default(), ["rec", "search"].map(String::from));
    let kinds = popularity(ITEMS, &split);
    let mut group = c.benchmark_group("metrics of 1M lists");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1));
    group.bench_function("means", |b| b.iter(|| black_box(&rankings).metrics(&tasks, &settings)));
    group.bench_function("slices", |b| {
        b.iter(|| by_slice(black_box(&rankings), &split, &tasks, &kinds, &settings))
    });
    group.bench_function("coverage", |b| {
        b.iter(|| coverage(black_box(&rankings), &tasks, ITEMS, &settings.k))
    });
    group.finish();
}

criterion_group!(benches, lists);
criterion_main!(benches);
