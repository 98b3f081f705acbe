//! What is being done, by phase and layer, and how long each operation or kernel takes.
//!
//! [`span`] names a stretch of work (`forward`, `layer 3`); while nobody traces it costs one load of a flag.
//! A trace belongs to the thread that starts it. With NVTX, spans also show in Nsight's timeline.

use super::{Attention, DType, Mask, Mat};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The least that an operation must do: its floor on any device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes: every input read once, every output written once.
    pub bytes: u64,
    /// Floating-point operations (a multiply-add is two).
    pub flops: u64,
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, flops: self.flops + other.flops }
    }
}

/// Bytes of a matrix.
pub fn bytes(m: Mat) -> u64 {
    (m.rows * m.cols * m.dtype.bytes()) as u64
}

/// Bytes of a matrix that may be missing.
pub fn bytes_or_none(m: Option<Mat>) -> u64 {
    m.map_or(0, bytes)
}

impl Work {
    /// Moves `bytes` and computes `flops`.
    pub fn new(bytes: u64, flops: u64) -> Self {
        Self { bytes, flops }
    }
    /// `C [m x n] (+)= A B` over an inner size `k`.
    pub fn product((m, n, k): (usize, usize, usize), a: DType, b: DType, c: DType, adds: bool) -> Self {
        let reads = m * k * a.bytes() + k * n * b.bytes();
        let writes = m * n * c.bytes() * if adds { 2 } else { 1 };
        Self::new((reads + writes) as u64, 2 * (m * n * k) as u64)
    }
    /// Part of an attention call or its gradient: it moves so many matrices of q's shape and of k's, and
    /// computes so many products for every visible pair (forward: 2, 2, 2; gradient: 4, 4, 5).
    pub fn attention(spec: &Attention, dtype: DType, (qs, ks, products): (u64, u64, u64)) -> Self {
        let rows = |offsets: &[u32]| u64::from(offsets.last().copied().unwrap_or(0));
        let (queries, keys) = (rows(&spec.q_offsets.host), rows(&spec.k_offsets.host));
        let (d, e) = (spec.head_dim as u64, dtype.bytes() as u64);
        let (heads, kv_heads) = (spec.heads as u64, spec.kv_heads as u64);
        let log_sums = 4 * queries * heads;
        let moved = (qs * queries * heads + ks * keys * kv_heads) * d * e + log_sums;
        Self::new(moved, 2 * products * visible_pairs(spec) * heads * d)
    }
    /// The least time on a device with these peaks, in seconds.
    pub fn floor(&self, peaks: &Peaks) -> f64 {
        (self.bytes as f64 / peaks.bytes_per_second).max(self.flops as f64 / peaks.flops_per_second)
    }
}

/// Pairs of a query row and a key row that it sees.
fn visible_pairs(spec: &Attention) -> u64 {
    let runs = |offsets: &[u32]| offsets.windows(2).map(|w| u64::from(w[1] - w[0])).collect::<Vec<_>>();
    let (queries, keys) = (runs(&spec.q_offsets.host), runs(&spec.k_offsets.host));
    match spec.mask {
        Mask::Listed { keys, .. } => keys.len() as u64,
        Mask::Causal => queries.iter().map(|n| n * (n + 1) / 2).sum(),
        Mask::Full => queries.iter().zip(&keys).map(|(q, k)| q * k).sum(),
    }
}

/// What a device can do at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Bytes a second to and from its memory.
    pub bytes_per_second: f64,
    /// Multiplications and additions a second, in the type that layers compute in.
    pub flops_per_second: f64,
}

/// One operation or kernel that was run.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Name of the operation or kernel.
    pub name: String,
    /// The spans around it, outermost first, joined by `/`.
    pub place: String,
    /// Seconds from the start of the recording to when the host began it.
    pub start: f64,
    /// Seconds from the start of the recording to when the device began it.
    pub at: Option<f64>,
    /// Seconds the host spent on it.
    pub host: f64,
    /// Seconds it took the device; `None` where the device computes nothing.
    pub seconds: Option<f64>,
    /// Its floor, where it is known.
    pub work: Option<Work>,
    /// Blocks of the launch; 0 for an operation of the CPU backend.
    pub blocks: u64,
}

/// A span that ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Its name.
    pub name: String,
    /// Spans around it.
    pub depth: usize,
    /// Seconds from the start of the trace.
    pub start: f64,
    /// How long it was, on the host's clock.
    pub seconds: f64,
}

#[derive(Default)]
struct Trace {
    began: Option<Instant>,
    open: Vec<(String, Instant)>,
    ended: Vec<Ended>,
}

static ACTIVE: AtomicBool = AtomicBool::new(false);
static NVTX: AtomicBool = AtomicBool::new(false);

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// Whether NVTX's library is there; without it the binding would panic.
pub fn nvtx_present() -> bool {
    // Sound: tries to open a library by its fixed names.
    unsafe { cudarc::nvtx::sys::is_culib_present() }
}

/// Starts a trace on this thread; `nvtx` also hands every span to NVTX, if its library is there.
pub fn start(nvtx: bool) {
    TRACE.with_borrow_mut(|t| *t = Trace { began: Some(Instant::now()), ..Trace::default() });
    NVTX.store(nvtx && nvtx_present(), Ordering::Relaxed);
    ACTIVE.store(true, Ordering::Relaxed);
}

/// Ends the trace of this thread: its spans in the order they ended.
pub fn stop() -> Vec<Ended> {
    ACTIVE.store(false, Ordering::Relaxed);
    TRACE.with_borrow_mut(|t| std::mem::take(&mut t.ended))
}

/// The open spans of this thread, joined by `/`.
pub fn place() -> String {
    TRACE.with_borrow(|t| t.open.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("/"))
}

/// Ends its span when dropped.
#[must_use = "a span ends when it is dropped"]
pub struct Span {
    traced: bool,
    nvtx: bool,
}

/// Names what is done until the returned value is dropped.
pub fn span(name: &'static str) -> Span {
    open(name, None)
}

/// The same for one of many: `layer 3`.
pub fn numbered(name: &'static str, index: usize) -> Span {
    open(name, Some(index))
}

fn open(name: &'static str, index: Option<usize>) -> Span {
    if !ACTIVE.load(Ordering::Relaxed) {
        return Span { traced: false, nvtx: false };
    }
    let name = index.map_or_else(|| name.to_string(), |i| format!("{name} {i}"));
    let nvtx = NVTX.load(Ordering::Relaxed);
    if nvtx {
        cudarc::nvtx::result::range_push(&name);
    }
    let traced = TRACE.with_borrow_mut(|t| {
        let traced = t.began.is_some();
        if traced {
            t.open.push((name, Instant::now()));
        }
        traced
    });
    Span { traced, nvtx }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.nvtx {
            cudarc::nvtx::result::range_pop();
        }
        if !self.traced {
            return;
        }
        TRACE.with_borrow_mut(|t| {
            let (Some((name, from)), Some(began)) = (t.open.pop(), t.began) else { return };
            let (start, seconds) = ((from - began).as_secs_f64(), from.elapsed().as_secs_f64());
            let depth = t.open.len();
            t.ended.push(Ended { name, depth, start, seconds });
        });
    }
}
