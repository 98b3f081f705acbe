//! Launches gathered into graphs that the device replays: CUDA graphs, over any driver that has them.
//!
//! A step launches the same kernels in the same order every time. They are held back until [`LONGEST`] of them wait or
//! something else is asked of the device; then the graph that was made of the same kernels before is patched where
//! something changed (a launch geometry, an argument), and started. Nothing above knows of it, no shape has to be
//! captured, and batches of any size replay. While the host gathers one graph the device works on the one before.
//!
//! Whether it pays on a GPU is not yet measured.

use crate::backend::DeviceInfo;
use crate::backend::cuda::abi::Launch;
use crate::backend::cuda::driver::{Driver, Event, Graph, Node, PlainProduct};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Launches of one graph: few enough that the device starts early.
const LONGEST: usize = 128;
/// Fewer launches than these are started one by one.
const SHORTEST: usize = 8;
/// Graphs that are kept.
const KEPT: usize = 256;

/// Kernels in order, and how many graphs of the same kernels came before it since the host last waited.
type Key = (Vec<u32>, usize);

#[derive(Clone, PartialEq)]
struct Queued {
    kernel: u32,
    launch: Launch,
    arguments: Vec<u8>,
}

struct CachedGraph {
    graph: Box<dyn Graph>,
    /// As the device has them.
    launches: Vec<Queued>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Queued>,
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    graphs: HashMap<Key, CachedGraph>,
    seen: HashMap<Vec<u32>, usize>,
    /// What went wrong where nobody could be told.
    failed: Option<Error>,
    counts: Replays,
}

/// What was replayed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replays {
    /// Graphs that were made.
    pub made: u64,
    /// Graphs that were started.
    pub started: u64,
    /// Launches in them.
    pub launches: u64,
    /// Launches of them of which something had changed since the graph's last start.
    pub changed: u64,
    /// Launches that were started one by one.
    pub single: u64,
}

/// See the module.
pub struct GraphDriver {
    inner: Arc<dyn Driver>,
    info: DeviceInfo,
    state: Mutex<State>,
}

impl GraphDriver {
    /// `inner`, with graphs.
    pub fn over(inner: Arc<dyn Driver>) -> Self {
        // Addresses that come back are what makes a step's launches the same as the last one's: memory is kept.
        let name = format!("{} with graphs", inner.info().name);
        let info = DeviceInfo { name, caches: true, ..inner.info().clone() };
        Self { inner, info, state: Mutex::default() }
    }

    /// What was replayed so far.
    pub fn counts(&self) -> Replays {
        self.state().counts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts everything that waits.
    fn flush(&self) -> Result<()> {
        let state = &mut *self.state();
        match state.failed.take() {
            Some(error) => Err(error),
            None => state.start(self.inner.as_ref()),
        }
    }

    /// The same, at a point at which the host waits: the next graphs are a step's first again.
    fn flush_and_begin(&self) -> Result<()> {
        self.flush()?;
        self.state().seen.clear();
        Ok(())
    }
}

impl Queued {
    fn node<'a>(&'a self, names: &'a [String]) -> Node<'a> {
        Node { kernel: &names[self.kernel as usize], launch: self.launch, arguments: &self.arguments }
    }
}

impl State {
    fn number(&mut self, kernel: &str) -> u32 {
        if let Some(number) = self.numbers.get(kernel) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(kernel.to_string());
        self.numbers.insert(kernel.to_string(), number);
        number
    }

    fn start(&mut self, driver: &dyn Driver) -> Result<()> {
        let launches = std::mem::take(&mut self.waiting);
        let count = launches.len() as u64;
        if launches.len() < SHORTEST {
            self.counts.single += count;
            return each(driver, &launches, &self.names);
        }
        self.counts.started += 1;
        self.counts.launches += count;
        let kernels: Vec<u32> = launches.iter().map(|l| l.kernel).collect();
        let before = self.seen.entry(kernels.clone()).or_default();
        let key = (kernels, *before);
        *before += 1;
        if let Some(known) = self.graphs.get_mut(&key) {
            self.counts.changed += known.replay(launches, &self.names)?;
            return Ok(());
        }
        let nodes: Vec<Node> = launches.iter().map(|l| l.node(&self.names)).collect();
        let Some(graph) = driver.graph(&nodes)? else { return each(driver, &launches, &self.names) };
        if self.graphs.len() >= KEPT {
            driver.synchronize()?;
            self.graphs.clear();
        }
        graph.start()?;
        self.counts.made += 1;
        self.graphs.insert(key, CachedGraph { graph, launches });
        Ok(())
    }
}

impl CachedGraph {
    /// Patches what changed, and starts it; returns how many launches had changed.
    fn replay(&mut self, launches: Vec<Queued>, names: &[String]) -> Result<u64> {
        let mut changed = 0;
        for (i, (old, new)) in self.launches.iter_mut().zip(launches).enumerate() {
            if *old != new {
                self.graph.replace(i, &new.node(names))?;
                *old = new;
                changed += 1;
            }
        }
        self.graph.start()?;
        Ok(changed)
    }
}

fn each(driver: &dyn Driver, launches: &[Queued], names: &[String]) -> Result<()> {
    launches.iter().map(|l| l.node(names)).try_for_each(|n| driver.launch(n.kernel, n.launch, n.arguments))
}

impl Driver for GraphDriver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn inner(&self) -> Option<&dyn Driver> {
        Some(self.inner.as_ref())
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.inner.alloc(bytes)
    }
    fn free(&self, address: u64, bytes: usize) {
        if let Err(error) = self.flush() {
            self.state().failed = Some(error);
        }
        self.inner.free(address, bytes);
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.flush()?;
        self.inner.upload(to, bytes)
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.flush_and_begin()?;
        self.inner.download(from, bytes)
    }
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[u8]) -> Result<()> {
        let full = {
            let mut state = self.state();
            let kernel = state.number(kernel);
            state.waiting.push(Queued { kernel, launch, arguments: arguments.to_vec() });
            state.waiting.len() >= LONGEST
        };
        if full { self.flush() } else { Ok(()) }
    }
    fn synchronize(&self) -> Result<()> {
        self.flush_and_begin()?;
        self.inner.synchronize()
    }
    fn plain_product(&self, p: &PlainProduct, factors: (f32, f32), matrices: [u64; 3]) -> Result<bool> {
        self.flush()?;
        self.inner.plain_product(p, factors, matrices)
    }
    fn event(&self) -> Result<Event> {
        self.flush()?;
        self.inner.event()
    }
    fn come_after(&self, event: &Event) -> Result<()> {
        self.flush()?;
        self.inner.come_after(event)
    }
    fn profiler(&self, on: bool) -> Result<()> {
        self.flush()?;
        self.inner.profiler(on)
    }
}

impl Drop for GraphDriver {
    fn drop(&mut self) {
        // Launches whose results nobody asked for; a device in use is left alone.
        let _ = self.flush().and_then(|()| self.inner.synchronize());
    }
}
