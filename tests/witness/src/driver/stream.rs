//! Streams keep what they are given until somebody waits. What is waited for is then done, and what that waits for; with
//! a seed, other streams' work comes in between at random.

use super::arguments::Out;
use super::graph::Instance;
use super::host::Snapshot;
use super::launch::Start;
use super::nccl::Meeting;
use super::order::{Clock, Mark, join};
use super::status::*;
use super::{CURRENT, Driver, bound};
use std::collections::{BTreeSet, VecDeque};
use std::ffi::c_uint;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Pieces of work that may wait in a stream before the first of them must be done.
const DEPTH: usize = 1024;

/// A piece of work.
pub enum Work {
    Kernel(Start),
    ToDevice {
        to: u64,
        from: Snapshot,
    },
    ToHost {
        to: usize,
        from: u64,
        bytes: usize,
    },
    Within {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Set {
        to: u64,
        value: Vec<u8>,
        bytes: usize,
    },
    /// Memory that was taken in stream order, and its freeing: address and bytes.
    Taken(u64, usize),
    Free(u64, usize),
    Record(Arc<Mutex<Option<Instant>>>),
    Wait(Mark),
    Graph(Instance),
    /// Messages between ranks: done when all have come.
    Meet(Box<Meeting>),
}

/// Work with its place: in its stream, and among the calls.
pub struct Op {
    pub mark: Mark,
    pub call: u64,
    pub name: &'static str,
    pub work: Work,
}

pub struct Stream {
    pub context: usize,
    /// Whether it and the legacy default stream wait for each other.
    blocking: bool,
    pub queue: VecDeque<Op>,
    clock: Clock,
    next: u64,
    done: u64,
    /// The graph that its work goes to, while it is captured.
    pub capture: Option<usize>,
    /// Whether something was asked for that a capture does not allow.
    pub capture_broken: bool,
}

impl Stream {
    fn new(context: usize, blocking: bool) -> Self {
        Self {
            context,
            blocking,
            queue: VecDeque::new(),
            clock: Clock::new(),
            next: 1,
            done: 0,
            capture: None,
            capture_broken: false,
        }
    }
}

impl Driver {
    /// The key of a stream: the legacy default stream has its context's.
    pub fn key(&self, stream: usize) -> usize {
        if stream <= 1 { CURRENT.get() } else { stream }
    }

    /// Whether it is a stream of this context.
    pub fn stream(&mut self, stream: usize, context: usize) -> Answer {
        if stream <= 1 {
            self.streams.entry(context).or_insert_with(|| Stream::new(context, true));
            return Ok(());
        }
        if stream == 2 {
            return refuse(NOT_SUPPORTED, "the default stream of each thread is not known here");
        }
        match self.streams.get(&stream) {
            Some(found) if found.context == context => Ok(()),
            Some(_) => refuse(INVALID_HANDLE, format!("stream {stream:#x} is of another context")),
            None => self.unknown("stream", stream),
        }
    }

    /// Work of a stream.
    pub fn give_work(&mut self, stream: usize, context: usize, work: Work) -> Answer {
        self.stream(stream, context)?;
        let key = self.key(stream);
        if self.is_capturing(stream) {
            return self.capture(key, work);
        }
        for mark in self.implied(key, context) {
            self.push(key, Work::Wait(mark));
        }
        self.push(key, work);
        while self.streams.get(&key).is_some_and(|s| s.queue.len() > DEPTH) {
            self.step(key);
        }
        Ok(())
    }

    /// What the legacy default stream and blocking streams wait for without being told.
    fn implied(&self, key: usize, context: usize) -> Vec<Mark> {
        let here = |s: &Stream| s.context == context && s.blocking;
        if !self.streams.get(&key).is_some_and(here) {
            return Vec::new();
        }
        let others =
            self.streams.iter().filter(|(k, s)| **k != key && here(s) && (key == context || **k == context));
        others.filter(|(_, s)| s.next > 1).map(|(k, _)| self.last(*k)).collect()
    }

    /// The last that a stream was given.
    pub fn last(&self, key: usize) -> Mark {
        let stream = &self.streams[&key];
        Mark { stream: key, number: stream.next - 1, clock: stream.clock.clone() }
    }

    fn push(&mut self, key: usize, work: Work) {
        let (call, name) = (self.calls, self.calling);
        let Some(stream) = self.streams.get_mut(&key) else { return };
        join(&mut stream.clock, &self.order.host);
        if let Work::Wait(mark) = &work {
            join(&mut stream.clock, &mark.clock);
        }
        stream.clock.insert(key, stream.next);
        let mark = Mark { stream: key, number: stream.next, clock: stream.clock.clone() };
        stream.next += 1;
        stream.queue.push_back(Op { mark, call, name, work });
    }

    /// Whether a point in a stream was reached.
    pub fn is_done(&self, mark: &Mark) -> bool {
        self.streams.get(&mark.stream).is_none_or(|s| s.done >= mark.number)
    }

    /// Does the first piece of a stream's work, or of that which it waits for.
    pub fn step(&mut self, key: usize) {
        let mut at = key;
        while let Some(Work::Wait(mark)) =
            self.streams.get(&at).and_then(|s| s.queue.front()).map(|op| &op.work)
        {
            if self.is_done(mark) {
                break;
            }
            at = mark.stream;
        }
        let Some(stream) = self.streams.get_mut(&at) else { return };
        let Some(mut op) = stream.queue.pop_front() else { return };
        let context = stream.context;
        if let Work::Meet(meeting) = &mut op.work {
            let what = format!("{} (call {})", op.name, op.call);
            if !self.meet(context, &op.mark, meeting, &what) {
                self.streams.entry(at).and_modify(|stream| stream.queue.push_front(op));
                return;
            }
        }
        self.streams.entry(at).and_modify(|stream| stream.done = op.mark.number);
        if self.healthy(context).is_ok() {
            self.perform(context, op);
        }
    }

    /// Does everything up to a point.
    pub fn reach(&mut self, mark: &Mark) {
        while !self.is_done(mark) {
            let open: Vec<usize> =
                self.streams.iter().filter(|(_, s)| !s.queue.is_empty()).map(|(k, _)| *k).collect();
            let next = if self.random == 0 { mark.stream } else { open[self.below(open.len())] };
            self.step(next);
        }
        join(&mut self.order.host, &mark.clock);
        self.heap.settle();
    }

    /// Waits for a stream.
    pub fn finish(&mut self, stream: usize) -> Answer {
        let key = self.key(stream);
        if self.streams.contains_key(&key) {
            let last = self.last(key);
            self.reach(&last);
            return self.healthy(self.streams[&key].context);
        }
        Ok(())
    }

    /// Waits for everything in a context.
    pub fn finish_all(&mut self, context: usize) -> Answer {
        let here: Vec<usize> =
            self.streams.iter().filter(|(_, s)| s.context == context).map(|(k, _)| *k).collect();
        for key in here {
            let last = self.last(key);
            self.reach(&last);
        }
        self.order.forget();
        self.healthy(context)
    }

    /// The fault that was asked for at a wait.
    pub fn waiting(&mut self) -> Answer {
        let Some(status) = self.injected("wait") else { return Ok(()) };
        let why = format!("asked for at a wait, {}", self.calling);
        self.fault(CURRENT.get(), status, why);
        quietly(status)
    }

    fn perform(&mut self, context: usize, op: Op) {
        let what = format!("{} (call {})", op.name, op.call);
        match op.work {
            Work::Wait(_) | Work::Meet(_) => {}
            Work::Record(at) => *at.lock().unwrap_or_else(|p| p.into_inner()) = Some(Instant::now()),
            Work::Taken(at, bytes) => self.uses(context, &op.mark, (at, bytes), true, &what),
            Work::Free(at, bytes) => {
                self.uses(context, &op.mark, (at, bytes), true, &what);
                self.heap.give(at, op.call, false);
            }
            Work::Graph(instance) => {
                let order = self.order_of(&instance);
                for node in order {
                    if self.healthy(context).is_ok() {
                        self.perform_part(context, &op.mark, &instance.work[node], &what);
                    }
                }
            }
            work => self.perform_part(context, &op.mark, &work, &what),
        }
    }

    /// What a stream and a node of a graph can do.
    fn perform_part(&mut self, context: usize, mark: &Mark, work: &Work, what: &str) {
        match work {
            Work::Kernel(start) => self.run(context, mark, start, what),
            Work::ToDevice { to, from } => {
                self.check_source(context, from, what);
                self.uses(context, mark, (*to, from.bytes.len()), true, what);
                // SAFETY: checked to lie in live memory when it was asked for; memory lives until its free is done.
                unsafe {
                    std::ptr::copy_nonoverlapping(from.bytes.as_ptr(), *to as *mut u8, from.bytes.len())
                };
                self.written(*to, from.bytes.len());
            }
            Work::ToHost { to, from, bytes } => {
                self.uses(context, mark, (*from, *bytes), false, what);
                self.check_written(context, *from, *bytes, what);
                // SAFETY: as above; the caller promises the place on the host until the copy is done.
                unsafe { std::ptr::copy_nonoverlapping(*from as *const u8, *to as *mut u8, *bytes) };
            }
            Work::Within { to, from, bytes } => {
                self.uses(context, mark, (*from, *bytes), false, what);
                self.uses(context, mark, (*to, *bytes), true, what);
                // SAFETY: as above.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
                if let (Some(source), Some(target)) = (self.heap.range(*from), self.heap.range(*to)) {
                    target.copy_written(source, *from, *to, *bytes as u64);
                }
            }
            Work::Set { to, value, bytes } => {
                self.uses(context, mark, (*to, *bytes), true, what);
                // SAFETY: as above.
                let there = unsafe { std::slice::from_raw_parts_mut(*to as *mut u8, *bytes) };
                there.chunks_mut(value.len()).for_each(|chunk| chunk.copy_from_slice(value));
                self.written(*to, *bytes);
            }
            _ => {}
        }
    }

    /// Notes that device memory was written.
    pub fn written(&self, at: u64, bytes: usize) {
        if let Some(range) = self.heap.range(at) {
            range.mark_written(at, bytes as u64);
        }
    }

    /// Says so if the host is given what nobody has written.
    pub fn check_written(&mut self, context: usize, at: u64, bytes: usize, what: &str) {
        let hole = self.heap.range(at).and_then(|range| range.first_unwritten(at, bytes as u64));
        if let Some(hole) = hole.filter(|_| self.settings.machine.unwritten) {
            let why = format!("{what}: byte {} of the {bytes} bytes at {at:#x} was never written", hole - at);
            self.fault(context, LAUNCH_FAILED, why);
        }
    }

    /// Whether more than one stream has work, so that order is a question.
    pub fn is_concurrent(&self) -> bool {
        self.streams.len() > 1
    }

    /// Notes that work uses memory, and says so if another stream's work uses it without an order.
    pub fn uses(&mut self, context: usize, mark: &Mark, (at, bytes): (u64, usize), writes: bool, what: &str) {
        if !self.is_concurrent() {
            return;
        }
        if let Some(why) = self.order.note(mark, (at, at + bytes as u64), writes, what) {
            self.fault(context, LAUNCH_FAILED, format!("missing synchronisation: {why}"));
        }
    }

    /// The keys of all streams that a capture forbids to wait for.
    pub fn capturing(&self) -> BTreeSet<usize> {
        self.streams.iter().filter(|(_, s)| s.capture.is_some()).map(|(k, _)| *k).collect()
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: Out<usize>, flags: c_uint) -> Status {
    bound("cuStreamCreate", |driver, context| {
        if flags > 1 {
            return refuse(INVALID_VALUE, format!("flags {flags}; 0 or CU_STREAM_NON_BLOCKING (1)"));
        }
        let made = driver.handle();
        driver.streams.insert(made, Stream::new(context, flags == 0));
        stream.put(made)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(stream: Out<usize>, flags: c_uint, _priority: i32) -> Status {
    cuStreamCreate(stream, flags)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: usize) -> Status {
    bound("cuStreamDestroy_v2", |driver, context| {
        if stream <= 2 {
            return refuse(INVALID_HANDLE, "a default stream cannot be destroyed");
        }
        driver.stream(stream, context)?;
        // What it was given is still done; the host does not wait for it.
        let (last, host) = (driver.last(stream), driver.order.host.clone());
        driver.reach(&last);
        driver.order.host = host;
        driver.streams.remove(&stream);
        driver.gone.insert(stream, ("stream", driver.calls));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: usize) -> Status {
    bound("cuStreamSynchronize", |driver, context| {
        driver.stream(stream, context)?;
        driver.not_captured(stream, "cuStreamSynchronize")?;
        driver.waiting()?;
        driver.finish(stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: usize) -> Status {
    bound("cuStreamQuery", |driver, context| {
        driver.stream(stream, context)?;
        driver.not_captured(stream, "cuStreamQuery")?;
        let key = driver.key(stream);
        // Time passes while somebody asks.
        driver.step(key);
        let last = driver.last(key);
        match driver.is_done(&last) {
            true => driver.finish(stream),
            false => quietly(NOT_READY),
        }
    })
}
