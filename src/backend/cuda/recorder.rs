//! Remembers launches while somebody wants to know: which kernel, where in the step, how long.

use super::driver::{Driver, Moment, Shape};
use crate::backend::trace::{Record, Work, place};
use crate::error::Result;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

struct Launched {
    record: Record,
    from: Moment,
    to: Moment,
}

struct Recording {
    began: Instant,
    launches: Vec<Launched>,
}

/// Idle (one flag to look at per launch) until [`Recorder::start`].
#[derive(Default)]
pub struct Recorder {
    on: AtomicBool,
    recording: Mutex<Option<Recording>>,
}

impl Recorder {
    fn recording(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Begins a recording.
    pub fn start(&self) {
        *self.recording() = Some(Recording { began: Instant::now(), launches: Vec::new() });
        self.on.store(true, Ordering::Relaxed);
    }

    /// Launches on `driver`, between two moments when recording.
    pub fn launch(
        &self,
        driver: &dyn Driver,
        (kernel, shape, arguments): (&str, Shape, &[u8]),
        work: Work,
    ) -> Result<()> {
        if !self.on.load(Ordering::Relaxed) {
            return driver.launch(kernel, shape, arguments);
        }
        let from = driver.mark()?;
        let host = Instant::now();
        driver.launch(kernel, shape, arguments)?;
        let spent = host.elapsed().as_secs_f64();
        let to = driver.mark()?;
        if let Some(recording) = &mut *self.recording() {
            let start = host.duration_since(recording.began).as_secs_f64();
            let (name, blocks) = (kernel.to_string(), shape.blocks());
            let record =
                Record { name, place: place(), start, host: spent, seconds: None, work: Some(work), blocks };
            recording.launches.push(Launched { record, from, to });
        }
        Ok(())
    }

    /// Ends the recording; returns the launches in order.
    pub fn finish(&self, driver: &dyn Driver) -> Result<Vec<Record>> {
        self.on.store(false, Ordering::Relaxed);
        let Some(recording) = self.recording().take() else { return Ok(Vec::new()) };
        driver.synchronize()?;
        let computes = driver.computes();
        let timed = |l: Launched| Record { seconds: l.to.since(&l.from).filter(|_| computes), ..l.record };
        Ok(recording.launches.into_iter().map(timed).collect())
    }
}
