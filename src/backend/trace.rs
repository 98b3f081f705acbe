//! What is being done, by phase and layer, and how long each operation or kernel takes.
//!
//! [`span`] names a stretch of work (`forward`, `layer 3`); while nobody traces it costs one load of a flag.
//! A trace belongs to the thread that starts it. With NVTX, spans also show in Nsight's timeline.

use super::nvtx;
use super::work::Work;
use crate::error::Result;
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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

/// Times whole operations of a backend that is done when it returns; idle (one flag to look at) until it is started.
#[derive(Default)]
pub struct Stopwatch {
    on: AtomicBool,
    recording: Mutex<Option<(Instant, Vec<Record>)>>,
}

impl Stopwatch {
    /// Whether operations are being timed.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }
    /// Begins a recording.
    pub fn start(&self) {
        *self.recording.lock().unwrap_or_else(|p| p.into_inner()) = Some((Instant::now(), Vec::new()));
        self.on.store(true, Ordering::Relaxed);
    }
    /// Ends it: what was done, in order.
    pub fn stop(&self) -> Vec<Record> {
        self.on.store(false, Ordering::Relaxed);
        let recording = self.recording.lock().unwrap_or_else(|p| p.into_inner()).take();
        recording.map(|(_, records)| records).unwrap_or_default()
    }
    /// Does `f`, which takes at least `work`, and remembers how long it took.
    pub fn time<T>(&self, name: &str, work: Work, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let from = Instant::now();
        let done = f()?;
        let seconds = from.elapsed().as_secs_f64();
        if let Some((began, records)) = &mut *self.recording.lock().unwrap_or_else(|p| p.into_inner()) {
            let start = (from - *began).as_secs_f64();
            records.push(Record {
                name: name.to_string(),
                place: place(),
                start,
                at: Some(start),
                host: seconds,
                seconds: Some(seconds),
                work: Some(work),
                blocks: 0,
            });
        }
        Ok(done)
    }
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

/// Starts a trace on this thread; `nvtx` also hands every span to the tool that watches this process, if there is one.
pub fn start(nvtx: bool) {
    TRACE.with_borrow_mut(|t| *t = Trace { began: Some(Instant::now()), ..Trace::default() });
    NVTX.store(nvtx && nvtx::listening(), Ordering::Relaxed);
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
        nvtx::push(&name);
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
            nvtx::pop();
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
