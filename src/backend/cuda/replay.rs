//! Launches gathered into chains that the device replays: CUDA graphs, over any driver that has them.
//!
//! A step launches the same kernels in the same order every time. They are held back until [`CHAIN`] of them wait or
//! something else is asked of the device; then the chain that was made of the same kernels before is told what changed
//! (a launch geometry, an argument) and started at once. Nothing above knows of it, no shape has to be captured, and
//! batches of any size replay: what differs from the last time is what is told. While the host gathers one chain the
//! device works on the one before.
//!
//! `GEMS_GRAPHS=on` asks for it; whether it pays on a GPU is not yet measured.

use super::driver::{Chain, Driver, Moment, Node, Shape};
use super::launch::{TensorMap, View};
use super::library::PlainProduct;
use crate::backend::trace::Peaks;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Launches of one chain: few enough that the device starts early.
const CHAIN: usize = 128;
/// Fewer launches than these are started one by one.
const SHORT: usize = 8;
/// Chains that are kept.
const KEPT: usize = 256;

/// Kernels in order, and how many chains of the same kernels came before it since the host last waited.
type Key = (Vec<u32>, usize);

#[derive(Clone, PartialEq)]
struct Launch {
    kernel: u32,
    shape: Shape,
    arguments: Vec<u8>,
}

struct Prepared {
    chain: Box<dyn Chain>,
    /// As the device has them.
    launches: Vec<Launch>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Launch>,
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    chains: HashMap<Key, Prepared>,
    seen: HashMap<Vec<u32>, usize>,
    /// What went wrong where nobody could be told.
    failed: Option<Error>,
    counts: Replays,
}

/// What was replayed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replays {
    /// Chains that were made.
    pub made: u64,
    /// Chains that were started.
    pub started: u64,
    /// Launches in them.
    pub launches: u64,
    /// Launches of them of which something had changed since the chain's last start.
    pub changed: u64,
    /// Launches that were started one by one.
    pub single: u64,
}

/// See the module.
pub struct Replayed {
    inner: Arc<dyn Driver>,
    state: Mutex<State>,
}

impl Replayed {
    /// `inner`, with chains.
    pub fn over(inner: Arc<dyn Driver>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// `inner`, with chains if `GEMS_GRAPHS=on` asks for them.
    ///
    /// # Errors
    /// It says something else.
    pub fn if_wanted(inner: Arc<dyn Driver>) -> Result<Arc<dyn Driver>> {
        match std::env::var("GEMS_GRAPHS").as_deref() {
            Err(_) | Ok("off" | "") => Ok(inner),
            Ok("on") => Ok(Arc::new(Self::over(inner))),
            Ok(other) => Err(Error::usage(format!("{other:?}")).at("GEMS_GRAPHS").remedy("on or off")),
        }
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

    /// The same, at a point at which the host waits: the next chains are a step's first again.
    fn flush_and_begin(&self) -> Result<()> {
        self.flush()?;
        self.state().seen.clear();
        Ok(())
    }
}

impl Launch {
    fn node<'a>(&'a self, names: &'a [String]) -> Node<'a> {
        Node { kernel: &names[self.kernel as usize], shape: self.shape, arguments: &self.arguments }
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
        if launches.len() < SHORT {
            self.counts.single += count;
            return each(driver, &launches, &self.names);
        }
        self.counts.started += 1;
        self.counts.launches += count;
        let kernels: Vec<u32> = launches.iter().map(|l| l.kernel).collect();
        let before = self.seen.entry(kernels.clone()).or_default();
        let key = (kernels, *before);
        *before += 1;
        if let Some(known) = self.chains.get_mut(&key) {
            self.counts.changed += known.replay(launches, &self.names)?;
            return Ok(());
        }
        let nodes: Vec<Node> = launches.iter().map(|l| l.node(&self.names)).collect();
        let Some(chain) = driver.chain(&nodes)? else { return each(driver, &launches, &self.names) };
        if self.chains.len() >= KEPT {
            driver.synchronize()?;
            self.chains.clear();
        }
        chain.start()?;
        self.counts.made += 1;
        self.chains.insert(key, Prepared { chain, launches });
        Ok(())
    }
}

impl Prepared {
    /// Tells the device what changed, and starts it; returns how many launches had changed.
    fn replay(&mut self, launches: Vec<Launch>, names: &[String]) -> Result<u64> {
        let mut changed = 0;
        for (i, (old, new)) in self.launches.iter_mut().zip(launches).enumerate() {
            if *old != new {
                self.chain.replace(i, &new.node(names))?;
                *old = new;
                changed += 1;
            }
        }
        self.chain.start()?;
        Ok(changed)
    }
}

fn each(driver: &dyn Driver, launches: &[Launch], names: &[String]) -> Result<()> {
    launches.iter().map(|l| l.node(names)).try_for_each(|n| driver.launch(n.kernel, n.shape, n.arguments))
}

impl Driver for Replayed {
    fn name(&self) -> String {
        format!("{} with graphs", self.inner.name())
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
    fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<()> {
        let full = {
            let mut state = self.state();
            let kernel = state.number(kernel);
            state.waiting.push(Launch { kernel, shape, arguments: arguments.to_vec() });
            state.waiting.len() >= CHAIN
        };
        if full { self.flush() } else { Ok(()) }
    }
    fn synchronize(&self) -> Result<()> {
        self.flush_and_begin()?;
        self.inner.synchronize()
    }
    fn wide(&self) -> usize {
        self.inner.wide()
    }
    fn max_shared(&self) -> usize {
        self.inner.max_shared()
    }
    // Addresses that come back are what makes a step's launches the same as the last one's.
    fn recycles(&self) -> bool {
        true
    }
    fn plain_product(&self, p: &PlainProduct, factors: (f32, f32), matrices: [u64; 3]) -> Result<bool> {
        self.flush()?;
        self.inner.plain_product(p, factors, matrices)
    }
    fn has_library(&self) -> bool {
        self.inner.has_library()
    }
    fn hopper(&self) -> bool {
        self.inner.hopper()
    }
    fn tensor_map(&self, matrix: &View) -> Result<TensorMap> {
        self.inner.tensor_map(matrix)
    }
    fn computes(&self) -> bool {
        self.inner.computes()
    }
    fn mark(&self) -> Result<Moment> {
        self.flush()?;
        self.inner.mark()
    }
    fn peaks(&self) -> Option<Peaks> {
        self.inner.peaks()
    }
    fn room(&self) -> Option<String> {
        self.inner.room()
    }
    fn profiler(&self, on: bool) -> Result<()> {
        self.flush()?;
        self.inner.profiler(on)
    }
}

impl Drop for Replayed {
    fn drop(&mut self) {
        // Launches whose results nobody asked for; a device in use is left alone.
        let _ = self.flush().and_then(|()| self.inner.synchronize());
    }
}
