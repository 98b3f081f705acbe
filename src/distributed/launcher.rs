//! Who started this process, and as which of how many: read from what launchers set.

use crate::error::{Error, Result};

/// A launcher's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// Its name, for people.
    pub name: &'static str,
    /// This process among its like.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// This process among those of its machine, where that is said.
    pub local_rank: Option<usize>,
    /// Whether it starts processes of an MPI library.
    pub mpi: bool,
}

/// Variables of a launcher: rank, size, local rank.
struct Known {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local: &'static str,
    /// One that must be set too, so that what others leave in the environment is no launcher.
    beside: Option<&'static str>,
    mpi: bool,
}

/// The first one found counts.
const KNOWN: &[Known] = &[
    Known {
        name: "by hand (GEMS_RANK)",
        rank: "GEMS_RANK",
        size: "GEMS_WORLD_SIZE",
        local: "GEMS_LOCAL_RANK",
        beside: None,
        mpi: true,
    },
    Known {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: "OMPI_COMM_WORLD_LOCAL_RANK",
        beside: None,
        mpi: true,
    },
    Known {
        name: "PMI (MPICH)",
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local: "MPI_LOCALRANKID",
        beside: None,
        mpi: true,
    },
    // After PMI, which it speaks too, and whose ranks it may have started as something else. What a batch script sees has
    // no step.
    Known {
        name: "Slurm",
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local: "SLURM_LOCALID",
        beside: Some("SLURM_STEP_ID"),
        mpi: true,
    },
    Known {
        name: "torchrun",
        rank: "RANK",
        size: "WORLD_SIZE",
        local: "LOCAL_RANK",
        beside: None,
        mpi: false,
    },
    Known {
        name: "Kubernetes (PET)",
        rank: "PET_NODE_RANK",
        size: "PET_NNODES",
        local: "PET_LOCAL_RANK",
        beside: None,
        mpi: false,
    },
];

impl Launcher {
    /// From the environment, given by `look`; `None`: this process was started by itself.
    ///
    /// # Errors
    /// Variables that are no numbers, or do not go together.
    pub fn find(look: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let set = |known: &&Known| {
            let beside = known.beside.is_none_or(|name| look(name).is_some());
            look(known.rank).is_some() && look(known.size).is_some() && beside
        };
        let Some(known) = KNOWN.iter().find(set) else { return Ok(None) };
        let number = |name: &str| -> Result<usize> {
            let text = look(name).unwrap_or_default();
            text.trim().parse().map_err(|_| {
                Error::usage(format!("{text:?} instead of a number"))
                    .at(name)
                    .remedy("it is for whoever starts this program to set it; unset it to run in one process")
            })
        };
        let (rank, size) = (number(known.rank)?, number(known.size)?);
        if rank >= size {
            return Err(Error::usage(format!("rank {rank} of {size}"))
                .at(format!("{}, {}", known.rank, known.size))
                .remedy("ranks count from 0"));
        }
        if known.name.starts_with("Kubernetes") {
            one_a_node(look)?;
        }
        let local_rank = look(known.local).map(|_| number(known.local)).transpose()?;
        Ok((size > 1).then_some(Self { name: known.name, rank, size, local_rank, mpi: known.mpi }))
    }
}

/// Kubeflow's variables are a pod's: they name processes only where each pod has one.
fn one_a_node(look: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    match look("PET_NPROC_PER_NODE").as_deref() {
        None | Some("1") => Ok(()),
        Some(several) => {
            Err(Error::usage(format!("{several} processes a pod, and nothing says which is which"))
                .at("PET_NPROC_PER_NODE")
                .remedy("start them with torchrun --no-python, which numbers them"))
        }
    }
}
