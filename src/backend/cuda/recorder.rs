//! Remembers launches while somebody wants to know: which kernel, where in the step, how long. Waits are always counted.

use super::driver::{Driver, Event};
use crate::backend::trace::{Record, place};
use crate::backend::work::Work;
use crate::error::Result;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

struct Launched {
    record: Record,
    from: Event,
    to: Event,
}

struct Recording {
    began: Instant,
    launches: Vec<Launched>,
}

/// Idle (one flag to look at per launch) until [`Recorder::start`].
#[derive(Default)]
pub struct Recorder {
    on: AtomicBool,
    waits: AtomicU64,
    recording: Mutex<Option<Recording>>,
}

impl Recorder {
    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts a wait for the device.
    pub fn wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits so far.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// Begins a recording.
    pub fn start(&self) {
        *self.recording() = Some(Recording { began: Instant::now(), launches: Vec::new() });
        self.on.store(true, Ordering::Relaxed);
    }

    /// Does `launch`, between two events of `driver` when recording; it says whether it launched anything.
    pub fn run(
        &self,
        driver: &dyn Driver,
        (kernel, blocks): (&str, u64),
        work: Work,
        launch: impl FnOnce() -> Result<bool>,
    ) -> Result<bool> {
        if !self.on.load(Ordering::Relaxed) {
            return launch();
        }
        let from = driver.event()?;
        let host = Instant::now();
        let done = launch()?;
        let spent = host.elapsed().as_secs_f64();
        let to = driver.event()?;
        if let (true, Some(recording)) = (done, &mut *self.recording()) {
            let start = host.duration_since(recording.began).as_secs_f64();
            let name = kernel.to_string();
            let record = Record {
                name,
                place: place(),
                start,
                at: None,
                host: spent,
                seconds: None,
                work: Some(work),
                blocks,
            };
            recording.launches.push(Launched { record, from, to });
        }
        Ok(done)
    }

    /// Ends the recording; returns the launches in order.
    pub fn finish(&self, driver: &dyn Driver) -> Result<Vec<Record>> {
        self.on.store(false, Ordering::Relaxed);
        let Some(recording) = self.recording().take() else { return Ok(Vec::new()) };
        driver.synchronize()?;
        if !driver.info().computes {
            return Ok(recording.launches.into_iter().map(|l| l.record).collect());
        }
        // The device's clock runs from the first launch on.
        let first = recording.launches.first().map_or(0.0, |l| l.record.start);
        let timed = |l: &Launched| {
            let at = l.from.since(&recording.launches[0].from).map(|seconds| first + seconds);
            Record { at, seconds: l.to.since(&l.from), ..l.record.clone() }
        };
        Ok(recording.launches.iter().map(timed).collect())
    }
}
