//! Renewing the bases of one model: by exact decomposition, and from sketches.
//!
//! Measured from the first pass over the batch to the bases in place; the passes are part of it.

mod shapes;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use gems_engine::gems::{Method, Refresh};
use shapes::{SMALL, TINY, Training, device, method};
use std::time::Duration;

fn refreshes(c: &mut Criterion) {
    let backend = device();
    for shape in [TINY, SMALL] {
        let mut group = c.benchmark_group(format!("refresh/{}", shape.name));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_secs(1));
        for (name, kind) in [("sketch", Refresh::Sketch), ("exact", Refresh::Exact)] {
            let mut settings = method(Method::Gems, 16);
            settings.gems.refresh = kind;
            let start = |model| Training::start(model, shape.batch(), settings.clone()).expect(name);
            group.bench_function(name, |b| {
                b.iter_batched(|| shape.model(&backend), start, BatchSize::PerIteration)
            });
        }
        group.finish();
    }
}

criterion_group!(benches, refreshes);
criterion_main!(benches);
