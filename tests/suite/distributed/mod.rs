//! Ranks as threads: what passes between them, what a step on several of them computes, and every way they can part.
//! Ranks as processes are `scripts/distributed.sh`.

mod launchers;
mod protocol;
mod steps;
mod sums;

use gems_engine::backend::DType;
use gems_engine::backend::cpu::Cpu;
use gems_engine::distributed::{DistributedSettings, Threads, Tree, World};
use gems_engine::error::Result;

/// Limits in seconds: within a step, and of a phase.
fn limits(timeout_s: u64, phase_timeout_s: u64) -> DistributedSettings {
    DistributedSettings { timeout_s, phase_timeout_s, check_every: 1, ..DistributedSettings::default() }
}

/// Runs `work` on `size` ranks that are threads; what each gave, in order.
fn on_ranks<T: Send>(size: usize, work: impl Fn(&World) -> Result<T> + Sync) -> Vec<Result<T>> {
    over(Threads::new(size), work)
}

/// The same on given ranks.
fn over<T: Send>(ranks: Vec<Threads>, work: impl Fn(&World) -> Result<T> + Sync) -> Vec<Result<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let start = |threads: Threads| {
            scope.spawn(move || {
                let world = World::over(Box::new(threads))?;
                world.follow(&limits(120, 120));
                let done = work(&world);
                done.as_ref().err().iter().for_each(|error| world.fail(error, || ()));
                done
            })
        };
        let handles: Vec<_> = ranks.into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// Sums leaves of `world` that all are `values`.
fn summed(world: &World, shards: usize, values: &[f32]) -> Result<Vec<f32>> {
    let be = Cpu::open(None)?;
    let mut tree = Tree::new(&be);
    for leaf in world.leaves(shards) {
        tree.push(leaf, be.tensor(values, 1, values.len(), DType::F32)?)?;
    }
    be.download(world.sum(shards, tree)?.mat())
}

/// The messages of ranks that must all fail.
fn refused<T>(all: Vec<Result<T>>) -> Vec<String> {
    all.into_iter().map(|one| one.err().expect("a rank did not fail").to_string()).collect()
}
