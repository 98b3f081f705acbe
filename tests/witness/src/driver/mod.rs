//! The CUDA driver library as programs see it: a device, contexts, memory, streams, events, graphs, modules, launches.
//!
//! Nothing happens sooner than it must: a stream keeps its work until somebody waits for it, and then only what was
//! waited for is done (with a seed: other streams' work in any order that their events allow). What a driver answers with
//! an error is refused here with the same code, and the reason is said; what a driver lets pass although it is wrong (a
//! source that changes under a copy, memory used after it was freed, streams that do not wait for each other) is a
//! fault: it is said, and every later call fails, as after a kernel's.
//!
//! docs/witness.md has the list of checks and the variables that set it up.

#![deny(clippy::undocumented_unsafe_blocks)]

mod arguments;
mod capture;
mod context;
mod copies;
mod cubin;
mod device;
mod event;
mod function;
mod graph;
mod heap;
mod host;
mod launch;
mod memory;
mod module;
mod nccl;
mod order;
mod report;
pub mod settings;
mod status;
mod stream;
mod tensor_map;
mod unsupported;

use order::Order;
use report::Report;
use settings::Settings;
use status::*;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

/// Everything that there is behind the functions.
pub struct Driver {
    settings: Settings,
    initialized: bool,
    /// Calls so far; reports name a call by it.
    calls: u64,
    /// The function that is being called.
    calling: &'static str,
    report: Report,
    contexts: BTreeMap<usize, context::Context>,
    primary: Option<usize>,
    heap: heap::Heap,
    /// Bytes that launches need for the local memory of all threads that fit at once.
    local_memory: usize,
    pinned: BTreeMap<usize, host::Pinned>,
    streams: BTreeMap<usize, stream::Stream>,
    events: BTreeMap<usize, event::Event>,
    modules: BTreeMap<usize, module::Module>,
    functions: BTreeMap<usize, function::Function>,
    graphs: BTreeMap<usize, graph::Graph>,
    executables: BTreeMap<usize, graph::Executable>,
    communicators: BTreeMap<usize, nccl::Communicator>,
    group: nccl::Group,
    order: Order,
    made: usize,
    /// Handles that are no more: what they were, and the call that ended them.
    gone: HashMap<usize, (&'static str, u64)>,
    injected: HashMap<&'static str, u64>,
    random: u64,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local!(static CURRENT: Cell<usize> = const { Cell::new(0) });

fn lock() -> MutexGuard<'static, Option<Driver>> {
    DRIVER.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Begins anew with a device as `settings` say, whatever went before; handles and memory of before are gone.
pub fn restart(settings: Settings) {
    *lock() = Some(Driver::new(settings));
    CURRENT.set(0);
}

/// What was said so far: refusals, faults, notes.
pub fn messages() -> Vec<String> {
    lock().as_ref().map_or(Vec::new(), |driver| driver.report.messages.clone())
}

impl Driver {
    fn new(settings: Settings) -> Self {
        Self {
            report: Report::new(&settings),
            heap: heap::Heap::new(settings.memory),
            random: settings.machine.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)
                | u64::from(settings.machine.seed != 0),
            settings,
            initialized: false,
            calls: 0,
            calling: "",
            contexts: BTreeMap::new(),
            primary: None,
            local_memory: 0,
            pinned: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            executables: BTreeMap::new(),
            communicators: BTreeMap::new(),
            group: nccl::Group::default(),
            order: Order::default(),
            made: 0,
            gone: HashMap::new(),
            injected: HashMap::new(),
        }
    }

    /// A handle that no other object has or had.
    fn handle(&mut self) -> usize {
        self.made += 1;
        0x5717_0000_0000 + self.made * 64
    }

    /// A random number below `bound`; always 0 without a seed.
    fn below(&mut self, bound: usize) -> usize {
        if self.random == 0 {
            return 0;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as usize % bound.max(1)
    }

    /// What somebody did wrong without the driver's noticing: said, and from now on the context answers with `status`.
    fn fault(&mut self, context: usize, status: Status, why: String) {
        self.report.say("fault", &format!("{why} ({})", label(status)));
        if let Some(context) = self.contexts.get_mut(&context) {
            context.failed.get_or_insert((status, why));
        }
    }

    /// The error that the context keeps answering with.
    fn healthy(&self, context: usize) -> Answer {
        match self.contexts.get(&context).and_then(|c| c.failed.as_ref()) {
            Some((status, why)) => refuse(*status, format!("the context failed before: {why}")),
            None => Ok(()),
        }
    }

    /// The fault that was asked for at this event, if any.
    fn injected(&mut self, kind: &'static str) -> Option<Status> {
        if self.settings.injected.is_empty() {
            return None;
        }
        let count = self.injected.entry(kind).or_default();
        *count += 1;
        let nth = *count;
        let found = self.settings.injected.iter().find(|i| i.kind == kind && i.nth == nth)?.status;
        self.report.note(&format!("{} as asked for: {kind} {nth}", label(found)));
        Some(found)
    }

    /// Why a handle is not one of `what`.
    fn unknown<T>(&self, what: &str, handle: usize) -> Answer<T> {
        let why = match self.gone.get(&handle) {
            Some((was, call)) => format!("{was} {handle:#x} was destroyed in call {call}"),
            None => format!("{handle:#x} is no {what}"),
        };
        refuse(INVALID_HANDLE, why)
    }

    fn finish_call(&mut self, answer: Answer) -> Status {
        let Err(refusal) = answer else { return SUCCESS };
        if let Some(why) = refusal.why {
            let (calling, call, label) = (self.calling, self.calls, label(refusal.status));
            self.report.say("refused", &format!("{calling} (call {call}): {why} ({label})"));
        }
        refusal.status
    }
}

fn label(status: Status) -> String {
    status::name(status).map_or_else(|| format!("error {status}"), |n| n.to_string_lossy().into_owned())
}

/// Does a function of the library that needs nothing.
fn plainly(name: &'static str, body: impl FnOnce(&mut Driver) -> Answer) -> Status {
    let mut guard = lock();
    let driver = guard.get_or_insert_with(|| Driver::new(Settings::of_environment()));
    driver.calls += 1;
    driver.calling = name;
    driver.report.count(name);
    let answer = body(driver);
    driver.finish_call(answer)
}

/// Does a function that needs `cuInit` before it.
fn call(name: &'static str, body: impl FnOnce(&mut Driver) -> Answer) -> Status {
    plainly(name, |driver| match driver.initialized {
        true => body(driver),
        false => refuse(NOT_INITIALIZED, "cuInit was not called"),
    })
}

/// Does a function that needs a context that is current on this thread and has not failed.
fn bound(name: &'static str, body: impl FnOnce(&mut Driver, usize) -> Answer) -> Status {
    call(name, |driver| {
        let current = CURRENT.get();
        if current == 0 {
            return refuse(INVALID_CONTEXT, "no context is current on this thread");
        }
        if !driver.contexts.contains_key(&current) {
            return refuse(INVALID_CONTEXT, format!("the context {current:#x} of this thread was destroyed"));
        }
        driver.healthy(current)?;
        let answer = body(driver, current);
        // What the work that was waited for came to is this call's answer too.
        match (&answer, driver.contexts.get(&current).and_then(|c| c.failed.as_ref())) {
            (Ok(()), Some((status, _))) => quietly(*status),
            _ => answer,
        }
    })
}
