//! A whole training step (forward, backward, coordinates, Adam, update) by method and model.

mod shapes;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gems_engine::gems::Method;
use shapes::{SMALL, T5, TINY, Training, device, method};
use std::time::Duration;

fn steps(c: &mut Criterion) {
    let backend = device();
    for shape in [TINY, SMALL, T5] {
        let mut group = c.benchmark_group(format!("step/{}", shape.name));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(3));
        let batch = shape.batch();
        group.throughput(Throughput::Elements(batch.rows() as u64));
        for (name, kind) in [("gems", Method::Gems), ("lora", Method::Lora), ("full", Method::Full)] {
            let settings = method(kind, 16);
            let mut training = Training::start(shape.model(&backend), batch.clone(), settings).expect(name);
            group.bench_function(name, |b| b.iter(|| training.step().expect(name)));
        }
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
