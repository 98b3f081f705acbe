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
    /// What its processes can meet by.
    pub means: Means,
}

/// How the processes of a launcher find each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Means {
    /// They are processes of an MPI library.
    Mpi,
    /// By NCCL, whose first rank listens at this `host:port`; `None` where the launcher names no place.
    Nccl(Option<String>),
}

/// Variables of a launcher: rank, size, local rank.
struct Known {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local: &'static str,
    /// One that must be set too, so that what others leave in the environment is no launcher.
    beside: Option<&'static str>,
    /// The first rank's host, and a port of it beside which another one is free; `None` for launchers of MPI.
    meeting: Option<[&'static str; 2]>,
}

/// The first one found counts.
const KNOWN: &[Known] = &[
    Known {
        name: "by hand (GEMS_RANK)",
        rank: "GEMS_RANK",
        size: "GEMS_WORLD_SIZE",
        local: "GEMS_LOCAL_RANK",
        beside: None,
        meeting: None,
    },
    Known {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: "OMPI_COMM_WORLD_LOCAL_RANK",
        beside: None,
        meeting: None,
    },
    Known {
        name: "PMI (MPICH)",
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local: "MPI_LOCALRANKID",
        beside: None,
        meeting: None,
    },
    // After PMI, which it speaks too, and whose ranks it may have started as something else. What a batch script sees has
    // no step.
    Known {
        name: "Slurm",
        rank: "SLURM_PROCID",
        size: "SLURM_STEP_NUM_TASKS",
        local: "SLURM_LOCALID",
        beside: Some("SLURM_STEP_ID"),
        meeting: None,
    },
    Known {
        name: "torchrun",
        rank: "RANK",
        size: "WORLD_SIZE",
        local: "LOCAL_RANK",
        beside: None,
        meeting: Some(["MASTER_ADDR", "MASTER_PORT"]),
    },
    Known {
        name: "Kubernetes (PET)",
        rank: "PET_NODE_RANK",
        size: "PET_NNODES",
        local: "PET_LOCAL_RANK",
        beside: None,
        meeting: Some(["PET_MASTER_ADDR", "PET_MASTER_PORT"]),
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
        let means = known.means(look)?;
        Ok((size > 1).then_some(Self { name: known.name, rank, size, local_rank, means }))
    }
}

impl Known {
    /// Whoever sets NCCL's own variable wants NCCL, and says where.
    fn means(&self, look: &dyn Fn(&str) -> Option<String>) -> Result<Means> {
        if let Some(given) =
            look("NCCL_COMM_ID").filter(|_| self.meeting.is_some() || self.rank == "GEMS_RANK")
        {
            return Ok(Means::Nccl(Some(given)));
        }
        let Some([host, port]) = self.meeting else { return Ok(Means::Mpi) };
        let (Some(at), Some(text)) = (look(host), look(port)) else { return Ok(Means::Nccl(None)) };
        // The port itself may be the launcher's own store.
        match text.trim().parse::<u16>().ok().and_then(|port| port.checked_add(1)) {
            Some(port) if at.contains(':') => Ok(Means::Nccl(Some(format!("[{at}]:{port}")))),
            Some(port) => Ok(Means::Nccl(Some(format!("{at}:{port}")))),
            None => {
                Err(Error::usage(format!("{text:?} instead of a port with a free one behind it")).at(port))
            }
        }
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
