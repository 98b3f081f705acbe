//! Ranks that are processes with a GPU each, where no MPI is between them: everything goes through NCCL, which moves
//! device memory on a stream of its own. Numbers that are computed on that GPU stay there. Calls do not block, and all of
//! them are watched by a deadline. NCCL cannot say who is missing.

mod ending;
mod library;

use super::communicator::{Communicator, Failure, Moved, OnWay, Parts, Passage};
use super::exit;
use super::launcher::Launcher;
use crate::backend::cuda::driver::Event;
use crate::backend::cuda::{driver_present, explain};
use crate::backend::{Backend, Tensor};
use crate::error::{Error, Kind, Result};
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError};
use ending::{Ending, Watch};
use library::{BYTE, FLOAT, Handle, IN_PROGRESS, Settings};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use library::found;
pub(super) use library::{Functions, UniqueId};

/// So long a rank asks again and again; after that it sleeps in between.
const EAGER: Duration = Duration::from_millis(2);
const NAP: Duration = Duration::from_micros(50);
/// All ranks must have come together after so long.
const MEETING: Duration = Duration::from_secs(300);

/// Processes under NCCL, each with its GPU.
pub struct Nccl {
    functions: Functions,
    name: String,
    rank: usize,
    size: usize,
    communicator: Handle,
    ending: Arc<Ending>,
    /// What is under way and not waited for.
    watch: Mutex<Option<Watch>>,
    stream: Arc<CudaStream>,
    /// Device memory that is sent, and received into.
    places: Mutex<[Option<CudaSlice<u8>>; 2]>,
}
// SAFETY: one thread calls it at a time, as every communicator; the library does not care which thread that is.
unsafe impl Send for Nccl {}
// SAFETY: as for `Send`.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Opens the library and meets the other ranks at `place` (`host:port` of the first one), with device `ordinal`.
    ///
    /// # Errors
    /// No library, no GPU; no place to meet; ranks that do not come.
    pub fn open(launcher: &Launcher, place: Option<&str>, ordinal: usize) -> Result<Self> {
        let Launcher { name, rank, size, .. } = launcher;
        let started = format!("{name} has started {size} processes, with no MPI between them");
        let place = place.ok_or_else(|| {
            Error::usage(format!("{started}, and does not say where they meet")).remedy(
                "set NCCL_COMM_ID to HOST:PORT of rank 0 for all of them, or start them with mpirun or srun",
            )
        })?;
        if !driver_present() {
            return Err(Error::usage(format!(
                "{started}: they exchange numbers through NCCL, which needs a GPU each, and there is no CUDA driver here"
            ))
            .remedy("without GPUs start them with mpirun or srun (docs/distributed.md)"));
        }
        let functions = Functions::open().map_err(|e| e.at(&started))?;
        let stream = stream(ordinal).map_err(|e| explain(e).at(format!("rank {rank}, GPU {ordinal}")))?;
        // What makes the same id in all processes without a message between them.
        // SAFETY: the program has one thread so far, and nobody reads the environment at the same time.
        unsafe { std::env::set_var("NCCL_COMM_ID", place) };
        let mut this = Self::over(functions, (*rank, *size), stream);
        let met = this.functions.unique_id().and_then(|id| this.join(id));
        met.map_err(|failure| this.not_met(place, &failure))?;
        Ok(this)
    }

    /// Meets the other ranks, all of which have been given the same id, with device `ordinal`.
    pub(super) fn meet(
        functions: Functions,
        place: (usize, usize),
        ordinal: usize,
        id: UniqueId,
    ) -> Moved<Self> {
        let mut this = Self::over(functions, place, stream(ordinal).map_err(driver)?);
        this.join(id)?;
        Ok(this)
    }

    fn over(functions: Functions, (rank, size): (usize, usize), stream: Arc<CudaStream>) -> Self {
        Self {
            name: format!("NCCL {}", functions.found.version),
            ending: Arc::new(Ending::of(functions.abort)),
            watch: Mutex::default(),
            functions,
            rank,
            size,
            communicator: std::ptr::null_mut(),
            stream,
            places: Mutex::default(),
        }
    }

    fn join(&mut self, id: UniqueId) -> Moved<()> {
        let mut settings = Settings::not_blocking();
        let (size, rank) = (self.size as i32, self.rank as i32);
        let mut made: Handle = std::ptr::null_mut();
        // SAFETY: places for a communicator and for settings of the size they say; the device's context is current.
        let code = unsafe { (self.functions.initialize)(&mut made, size, id, rank, &mut settings) };
        self.communicator = made;
        self.ending.of_communicator(made);
        self.functions.check(code, made)?;
        self.begun(Instant::now(), MEETING)
    }

    fn not_met(&self, place: &str, failure: &Failure) -> Error {
        let why = match failure {
            Failure::Library(text) => text.clone(),
            _ => format!("not all of {} ranks came within {} s", self.size, MEETING.as_secs()),
        };
        Error::new(Kind::Distributed, format!("{}: {why}", self.name)).at(format!("the meeting at {place}")).remedy(
            "look at the other ranks' messages and at the network between the machines; NCCL_DEBUG=INFO says more",
        )
    }

    /// Waits until everything that was asked for is in the stream: before that nothing else may be asked for.
    fn begun(&self, start: Instant, patience: Duration) -> Moved<()> {
        self.watch(start, patience, || self.functions.is_ready(self.communicator))
    }

    /// Waits until `is_done`.
    fn watch(&self, start: Instant, patience: Duration, is_done: impl Fn() -> Moved<bool>) -> Moved<()> {
        while !is_done()? {
            let waited = start.elapsed();
            if waited > patience {
                return Err(Failure::Late(waited));
            }
            match waited < EAGER {
                true => std::thread::yield_now(),
                false => std::thread::sleep(NAP),
            }
        }
        Ok(())
    }

    /// Ends what is under way.
    pub(super) fn give_up(&self) {
        self.ending.give_up();
    }

    /// Takes `own` through device memory: `ask` says what the library is to do with the addresses of what was sent and of
    /// `bytes` bytes that are received.
    fn through(
        &self,
        own: &[u8],
        bytes: usize,
        patience: Duration,
        ask: impl FnOnce(u64, u64) -> Moved<()>,
    ) -> Moved<Vec<u8>> {
        self.ending.has_not_come()?;
        let start = Instant::now();
        self.stream.context().bind_to_thread().map_err(driver)?;
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let [from, to] = &mut *places;
        let (from, to) = (self.room(from, own.len())?, self.room(to, bytes)?);
        self.stream.memcpy_htod(own, &mut from.slice_mut(..own.len())).map_err(driver)?;
        {
            let (sent, _read) = from.device_ptr(&self.stream);
            let (received, _written) = to.device_ptr_mut(&self.stream);
            ask(sent, received)?;
            self.arrived(start, patience)?;
        }
        let mut all = vec![0u8; bytes];
        self.stream.memcpy_dtoh(&to.slice(..bytes), &mut all).map_err(driver)?;
        self.stream.synchronize().map_err(driver)?;
        Ok(all)
    }

    /// Waits until what was asked for is done. A copy to the host would wait for ever: it comes after this, which is under
    /// the deadline.
    fn arrived(&self, start: Instant, patience: Duration) -> Moved<()> {
        self.begun(start, patience)?;
        let arrived = self.stream.record_event(None).map_err(driver)?;
        self.reached(&arrived, start, patience)
    }

    /// Waits until a stream has come to `point`.
    fn reached(&self, point: &CudaEvent, start: Instant, patience: Duration) -> Moved<()> {
        self.watch(start, patience, || {
            self.ending.has_not_come()?;
            self.functions.is_ready(self.communicator)?;
            point.try_is_complete().map_err(driver)
        })
    }

    /// Up to where the work of `at` was given to it, if that is this GPU's.
    fn point_of(&self, at: &dyn Backend) -> Option<CudaEvent> {
        match at.event() {
            Ok(Event::Device(event)) if event.context() == self.stream.context() => Some(event),
            _ => None,
        }
    }

    /// Starts an exchange within the memory of this GPU, after everything that was computed before; returns when that will
    /// be done.
    fn directly(
        &self,
        parts: &Parts,
        (from, to): (u64, u64),
        at: &dyn Backend,
        (start, patience): (Instant, Duration),
    ) -> Moved<CudaEvent> {
        self.ending.has_not_come()?;
        let computed =
            self.point_of(at).ok_or_else(|| Failure::Library("this is no memory of its GPU".into()))?;
        self.stream.wait(&computed).map_err(driver)?;
        self.parts(parts, from, to)?;
        self.begun(start, patience)?;
        self.stream.record_event(None).map_err(driver)
    }

    /// Since when something is under way that the host does not wait for: a watch ends it if nobody else does.
    fn since(&self, patience: Duration) -> Instant {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.get_or_insert_with(|| Watch::over(&self.ending, patience)).since
    }

    /// What failed leaves memory that the library may still use: it is never freed.
    fn forgotten<T>(&self, failure: Failure, memory: (Tensor, Tensor)) -> Moved<T> {
        // Only then is the memory nobody's; and where the library does not end in time, never.
        self.give_up();
        std::mem::forget(memory);
        Err(failure)
    }

    /// A place of at least so many bytes.
    fn room<'a>(&self, place: &'a mut Option<CudaSlice<u8>>, bytes: usize) -> Moved<&'a mut CudaSlice<u8>> {
        if place.as_ref().is_none_or(|there| there.len() < bytes) {
            // The old one goes first: the two need not fit together.
            *place = None;
            let taken = self.stream.alloc_zeros(bytes.next_power_of_two().max(256)).map_err(driver)?;
            *place = Some(taken);
        }
        place.as_mut().ok_or_else(|| Failure::Library("no device memory".into()))
    }

    /// Sends and receives one part.
    fn part(&self, is_sent: bool, at: u64, count: usize, peer: usize) -> Moved<()> {
        if count == 0 {
            return Ok(());
        }
        let (f, at) = (&self.functions, at as *mut c_void);
        let call = if is_sent { f.send } else { f.receive };
        let stream = self.stream.cu_stream().cast();
        // SAFETY: `at` has room for `count` numbers until the stream has done this.
        let code = unsafe { call(at, count, FLOAT, peer as i32, self.communicator, stream) };
        f.check(code, self.communicator)
    }

    /// All parts at once: what is asked for between start and end happens together.
    fn parts(&self, parts: &Parts, sent: u64, received: u64) -> Moved<()> {
        // SAFETY: takes nothing.
        self.functions.check(unsafe { (self.functions.group_start)() }, self.communicator)?;
        for (peer, (from, to)) in parts.send.iter().zip(&parts.receive).enumerate() {
            self.part(true, sent + 4 * from.start as u64, from.len(), peer)?;
            self.part(false, received + 4 * to.start as u64, to.len(), peer)?;
        }
        // SAFETY: takes nothing.
        self.functions.check(unsafe { (self.functions.group_end)() }, self.communicator)
    }
}

/// A stream of its own on a device, whose context is current from here on.
fn stream(ordinal: usize) -> std::result::Result<Arc<CudaStream>, DriverError> {
    let context = CudaContext::new(ordinal)?;
    context.bind_to_thread()?;
    // SAFETY: what is allocated through this context is used by the one stream alone, in order.
    unsafe { context.disable_event_tracking() };
    context.new_stream()
}

fn driver(error: DriverError) -> Failure {
    Failure::Library(format!("the CUDA driver says {:?}", error.0))
}

impl Communicator for Nccl {
    fn place(&self) -> (usize, usize) {
        (self.rank, self.size)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn gather(&self, own: &[u8], patience: Duration) -> Moved<Vec<u8>> {
        let (f, stream) = (&self.functions, self.stream.cu_stream().cast());
        self.through(own, own.len() * self.size, patience, |from, to| {
            let (from, to) = (from as *const c_void, to as *mut c_void);
            // SAFETY: `from` has as many bytes as are given, `to` as many for every rank.
            let code = unsafe { (f.allgather)(from, to, own.len(), BYTE, self.communicator, stream) };
            f.check(code, self.communicator)
        })
        .inspect_err(|_| self.give_up())
    }

    fn reaches(&self, at: &dyn Backend, _patience: Duration) -> Moved<bool> {
        Ok(!at.info().launches_kernels() || self.point_of(at).is_some())
    }

    fn exchange(&self, passage: Passage, patience: Duration) -> Moved<Tensor> {
        let Passage { send, mut to, parts, at } = passage;
        let done = match (send.address(), to.address(), send.host()) {
            (Some(from), Some(into), _) => {
                let start = Instant::now();
                let arrived = self.directly(parts, (from, into), at, (start, patience));
                arrived.and_then(|arrived| self.reached(&arrived, start, patience))
            }
            (_, _, Some(values)) => {
                let bytes = 4 * to.len();
                let ask = |from, to| self.parts(parts, from, to);
                let all = self.through(bytemuck::cast_slice(values), bytes, patience, ask);
                all.map(|all| to.host_mut().into_iter().for_each(|to| fill(to, &all)))
            }
            _ => Err(Failure::Library("it was given what it does not reach".into())),
        };
        match done {
            Ok(()) => Ok(to),
            Err(failure) => self.forgotten(failure, (send, to)),
        }
    }

    fn start(&self, passage: Passage, patience: Duration) -> Moved<OnWay> {
        let Passage { send, to, parts, at } = passage;
        let (Some(from), Some(into)) = (send.address(), to.address()) else {
            return self.exchange(Passage { send, to, parts, at }, patience).map(OnWay::arrived);
        };
        match self.directly(parts, (from, into), at, (self.since(patience), patience)) {
            Ok(arrived) => Ok(OnWay::started(send, to, Event::Device(arrived))),
            Err(failure) => self.forgotten(failure, (send, to)),
        }
    }

    fn settle(&self, at: &dyn Backend, patience: Duration) -> Moved<()> {
        let Some(since) = self.watch.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|w| w.since)
        else {
            return Ok(());
        };
        let landed = self.point_of(at).ok_or_else(|| Failure::Library("this is no memory of its GPU".into()));
        landed.and_then(|landed| self.reached(&landed, since, patience)).inspect_err(|_| self.give_up())?;
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn leave(&self) {
        let f = &self.functions;
        exit::unless_done(0, || {
            // SAFETY: nothing is under way; the communicator is not used after it.
            let code = unsafe { (f.finalize)(self.communicator) };
            while code == IN_PROGRESS && !f.is_ready(self.communicator).unwrap_or(true) {
                std::thread::sleep(NAP);
            }
            // SAFETY: as above.
            unsafe { (f.destroy)(self.communicator) };
        });
    }

    fn abort(&self, code: u8) {
        self.give_up();
        exit::now(code);
    }
}

/// Bytes as the numbers that they are.
fn fill(to: &mut [f32], bytes: &[u8]) {
    bytemuck::cast_slice_mut(to).copy_from_slice(bytes);
}
