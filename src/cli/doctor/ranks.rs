//! What would move numbers between processes, and who is here already.

use super::{Check, note, pass};
use crate::cli::ranks;
use crate::distributed::{found_mpi, found_nccl};

/// The ranks of this command, the MPI library and NCCL.
pub fn checks(gpu: bool) -> Vec<Check> {
    let mut checks: Vec<Check> = ranks::described().into_iter().map(|who| pass("ranks", who)).collect();
    let launcher = ranks::launcher().ok().flatten();
    checks.push(match found_mpi(launcher.as_ref()) {
        Ok(library) => pass("MPI", library),
        Err(error) => note("MPI", error.what().to_string(), "needed for more than one process only"),
    });
    match found_nccl() {
        Ok(nccl) => checks.push(pass("NCCL", format!("{} ({})", nccl.version, nccl.file))),
        Err(error) if gpu => checks.push(note(
            "NCCL",
            error.what().to_string(),
            "needed for more than one process without MPI only (torchrun, Kubernetes)",
        )),
        Err(_) => {}
    }
    checks
}
