//! NCCL beside MPI: a launcher has brought MPI, and each rank has a GPU. What is in the memory of GPUs goes through NCCL,
//! everything else through MPI, which also brings the ranks together for NCCL and says who is missing.

use super::communicator::{Communicator, Failure, Moved, OnWay, Passage};
use super::mpi::Mpi;
use super::nccl::{Functions, Nccl, UniqueId};
use crate::backend::cuda::driver::Event;
use crate::backend::{Backend, Tensor};
use std::sync::OnceLock;
use std::time::Duration;

/// Processes under MPI; when the first sums on GPUs are to be exchanged they meet under NCCL too.
pub struct NcclBesideMpi {
    mpi: Mpi,
    /// `None`: not every rank has a GPU and NCCL.
    nccl: OnceLock<Option<Nccl>>,
}

impl NcclBesideMpi {
    /// Over ranks that have met under MPI.
    pub fn over(mpi: Mpi) -> Self {
        Self { mpi, nccl: OnceLock::new() }
    }

    fn nccl(&self) -> Option<&Nccl> {
        self.nccl.get().and_then(Option::as_ref)
    }

    /// NCCL cannot say who is missing; MPI can.
    fn named(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Late(after) => Failure::Silent { ranks: self.mpi.roll_call(), after },
            other => other,
        }
    }

    /// Meets under NCCL, with the GPU of `at`, if all ranks can.
    fn meet(&self, at: &dyn Backend, patience: Duration) -> Moved<Option<Nccl>> {
        let ordinal = match at.event() {
            Ok(Event::Device(event)) => Some(event.context().ordinal()),
            _ => None,
        };
        let wanted = ordinal.filter(|_| std::env::var("GEMS_NCCL").as_deref() != Ok("off"));
        let able = wanted.and_then(|ordinal| Some((ordinal, Functions::open().ok()?)));
        let all = self.mpi.gather(&[able.is_some().into()], patience)?;
        let Some((ordinal, functions)) = able.filter(|_| all.iter().all(|able| *able == 1)) else {
            return Ok(None);
        };
        let (rank, size) = self.mpi.place();
        // The first rank listens where its own id says.
        let own = if rank == 0 { functions.unique_id()? } else { bytemuck::Zeroable::zeroed() };
        let ids = self.mpi.gather(bytemuck::bytes_of(&own), patience)?;
        let id: UniqueId = bytemuck::pod_read_unaligned(&ids[..size_of::<UniqueId>()]);
        Nccl::meet(functions, (rank, size), ordinal, id).map(Some)
    }
}

impl Communicator for NcclBesideMpi {
    fn place(&self) -> (usize, usize) {
        self.mpi.place()
    }

    fn name(&self) -> &str {
        self.mpi.name()
    }

    fn gather(&self, own: &[u8], patience: Duration) -> Moved<Vec<u8>> {
        self.mpi.gather(own, patience)
    }

    fn reaches(&self, at: &dyn Backend, patience: Duration) -> Moved<bool> {
        if !at.info().launches_kernels() {
            return Ok(true);
        }
        if self.nccl.get().is_none() {
            let met = self.meet(at, patience).map_err(|failure| match failure {
                Failure::Library(text) => Failure::Library(format!(
                    "NCCL beside it says {text}; each rank needs a GPU of its own, or GEMS_NCCL=off for all of them"
                )),
                other => other,
            });
            let _ = self.nccl.set(met?);
        }
        self.nccl().map_or(Ok(false), |nccl| nccl.reaches(at, patience))
    }

    fn exchange(&self, passage: Passage, patience: Duration) -> Moved<Tensor> {
        let Some(nccl) = self.nccl().filter(|_| passage.at.info().launches_kernels()) else {
            return self.mpi.exchange(passage, patience);
        };
        nccl.exchange(passage, patience).map_err(|failure| self.named(failure))
    }

    fn start(&self, passage: Passage, patience: Duration) -> Moved<OnWay> {
        let Some(nccl) = self.nccl().filter(|_| passage.at.info().launches_kernels()) else {
            return self.mpi.start(passage, patience);
        };
        nccl.start(passage, patience).map_err(|failure| self.named(failure))
    }

    fn settle(&self, at: &dyn Backend, patience: Duration) -> Moved<()> {
        let nccl = self.nccl().filter(|_| at.info().launches_kernels());
        nccl.map_or(Ok(()), |nccl| nccl.settle(at, patience)).map_err(|failure| self.named(failure))
    }

    fn leave(&self) {
        self.nccl().into_iter().for_each(Communicator::leave);
        self.mpi.leave();
    }

    fn abort(&self, code: u8) {
        self.nccl().into_iter().for_each(Nccl::give_up);
        self.mpi.abort(code);
    }
}
