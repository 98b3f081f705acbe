//! Ranks that are processes under an MPI library. Every operation is non-blocking and watched by a deadline; a rank that
//! does not answer a roll call is named.

mod library;

use super::communicator::{Communicator, Failure, Moved, Passage};
use super::exit;
use super::launcher::Launcher;
use crate::backend::Tensor;
use crate::error::{Error, Result};
use library::{Functions, Handle};
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Messages of a roll call.
const ROLL_CALL: c_int = 0x6765;
/// How long those who are alive have for an answer.
const ANSWER: Duration = Duration::from_secs(1);
/// So long a rank asks again and again; after that it sleeps in between.
const EAGER: Duration = Duration::from_millis(2);
const NAP: Duration = Duration::from_micros(100);
/// How often a rank that waits looks whether another has begun a roll call.
const LOOK: Duration = Duration::from_millis(20);

/// Processes under MPI.
pub struct Mpi {
    functions: Functions,
    rank: usize,
    size: usize,
}

/// Name and version of the MPI library that would be opened here, or why none is.
pub fn found(launcher: Option<&Launcher>) -> Result<String> {
    Functions::open(launcher).map(|functions| functions.name)
}

impl Mpi {
    /// Opens the library and starts it. It must see what the launcher has said.
    ///
    /// # Errors
    /// No library; one that does not belong to the launcher.
    pub fn open(launcher: &Launcher) -> Result<Self> {
        let functions = Functions::open(Some(launcher))?;
        let (rank, size) = functions.initialize()?;
        if (rank, size) != (launcher.rank, launcher.size) {
            return Err(Error::usage(format!(
                "the launcher and the MPI library do not belong together: {} says rank {} of {}, {} says rank {rank} of \
                 {size}",
                launcher.name, launcher.rank, launcher.size, functions.name
            ))
            .remedy(
                "start with the mpirun of that library, or name the launcher's library in GEMS_MPI; under Slurm, \
                 srun --mpi=pmix is for Open MPI, --mpi=pmi2 for MPICH",
            ));
        }
        Ok(Self { functions, rank, size })
    }

    /// Waits for a request; `kept` is what it reads and writes, which must stay until it is done.
    fn wait<K>(&self, mut request: Handle, kept: K, patience: Duration) -> Moved<K> {
        let (start, mut looked) = (Instant::now(), Instant::now());
        loop {
            if self.is_done(&mut request)? {
                return Ok(kept);
            }
            let waited = start.elapsed();
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                if waited > patience || self.is_called() {
                    // The library may still write there.
                    std::mem::forget(kept);
                    let ranks = self.roll_call();
                    return Err(Failure::Silent { ranks, after: waited });
                }
            }
            match waited < EAGER {
                true => std::thread::yield_now(),
                false => std::thread::sleep(NAP),
            }
        }
    }

    fn is_done(&self, request: &mut Handle) -> Moved<bool> {
        let (mut done, mut status) = (0, [0u64; 8]);
        // SAFETY: the request was made by this library; a status of any of them fits into 64 bytes.
        let code = unsafe { (self.functions.test)(request, &mut done, status.as_mut_ptr().cast()) };
        self.check(code).map(|()| done != 0)
    }

    fn check(&self, code: c_int) -> Moved<()> {
        if code == 0 { Ok(()) } else { Err(Failure::Library(format!("error code {code}"))) }
    }

    /// Whether another rank asks who is there.
    fn is_called(&self) -> bool {
        (0..self.size).any(|rank| rank != self.rank && self.has_called(rank))
    }

    fn has_called(&self, rank: usize) -> bool {
        let (mut there, mut status, f) = (0, [0u64; 8], &self.functions);
        // SAFETY: places for an int and a status.
        let code =
            unsafe { (f.probe)(rank as c_int, ROLL_CALL, f.world, &mut there, status.as_mut_ptr().cast()) };
        code == 0 && there != 0
    }

    /// Tells everybody that this rank is there; who does not say the same within a second is returned. A rank that waits
    /// answers at once; one that computes does not, and is what the others wait for.
    pub(super) fn roll_call(&self) -> Vec<usize> {
        let (others, f) = ((0..self.size).filter(|rank| *rank != self.rank), &self.functions);
        // Not waited for, and never given back: what is written to a dead rank is never done.
        let word: &'static mut [u8; 1] = Box::leak(Box::new([1]));
        let mut requests = Vec::new();
        for rank in others.clone() {
            let mut request: Handle = 0;
            // SAFETY: the byte lives as long as the process.
            unsafe {
                (f.send)(
                    word.as_mut_ptr().cast(),
                    1,
                    f.byte,
                    rank as c_int,
                    ROLL_CALL,
                    f.world,
                    &mut request,
                );
            }
            requests.push(request);
        }
        let mut missing: Vec<usize> = others.collect();
        let start = Instant::now();
        while !missing.is_empty() && start.elapsed() < ANSWER {
            missing.retain(|rank| !self.has_called(*rank));
            for request in &mut requests {
                if self.is_done(request).is_err() {
                    break;
                }
            }
            std::thread::sleep(NAP);
        }
        missing
    }
}

impl Communicator for Mpi {
    fn place(&self) -> (usize, usize) {
        (self.rank, self.size)
    }

    fn name(&self) -> &str {
        &self.functions.name
    }

    fn gather(&self, own: &[u8], patience: Duration) -> Moved<Vec<u8>> {
        let (f, mut request, count) = (&self.functions, 0, own.len() as c_int);
        let (own, mut all) = (own.to_vec(), vec![0u8; own.len() * self.size]);
        let (from, to): (*const c_void, *mut c_void) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: `own` has `count` bytes, `all` as many for every rank; both stay until the request is done.
        let code = unsafe { (f.allgather)(from, count, f.byte, to, count, f.byte, f.world, &mut request) };
        self.check(code)?;
        self.wait(request, (own, all), patience).map(|(_, all)| all)
    }

    fn exchange(&self, passage: Passage, patience: Duration) -> Moved<Tensor> {
        let Passage { send, mut to, parts, .. } = passage;
        let (f, mut request) = (&self.functions, 0);
        let (sent, given) = (in_bytes(&parts.send), in_bytes(&parts.receive));
        let (Some(from), Some(into)) = (send.host(), to.host_mut()) else {
            return Err(Failure::Library("it was given what is not in host memory".into()));
        };
        let (from, into): (*const c_void, *mut c_void) = (from.as_ptr().cast(), into.as_mut_ptr().cast());
        // SAFETY: parts and places are within the two tensors; everything stays until the request is done.
        let code = unsafe {
            (f.alltoallv)(
                from,
                sent.0.as_ptr(),
                sent.1.as_ptr(),
                f.byte,
                into,
                given.0.as_ptr(),
                given.1.as_ptr(),
                f.byte,
                f.world,
                &mut request,
            )
        };
        self.check(code)?;
        self.wait(request, (send, to, sent, given), patience).map(|(_, to, ..)| to)
    }

    fn leave(&self) {
        // SAFETY: nothing is under way, and nothing of the library is called after it.
        exit::unless_done(0, || unsafe {
            (self.functions.finalize)();
        });
    }

    fn abort(&self, code: u8) {
        // SAFETY: may be called at any time.
        exit::unless_done(code, || unsafe {
            (self.functions.abort)(self.functions.world, code.into());
        });
        exit::now(code);
    }
}

/// Ranges of f32 as counts and places of bytes. A piece of a sum is far below what an int holds.
fn in_bytes(ranges: &[Range<usize>]) -> (Vec<c_int>, Vec<c_int>) {
    ranges.iter().map(|range| (4 * range.len() as c_int, 4 * range.start as c_int)).unzip()
}
