//! Ranks found from what launchers set.

use gems_engine::distributed::{Launcher, Means};
use gems_engine::error::Result;

fn find(set: &[(&str, &str)]) -> Result<Option<Launcher>> {
    let set: Vec<(String, String)> = set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Launcher::find(&|name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
}

/// Variables as these launchers were seen to set them.
#[test]
fn every_launcher_is_known_by_its_variables() {
    let slurm = [("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "1")];
    let nccl = |place: &str| Means::Nccl(Some(place.into()));
    for (set, name, rank, size, local, means) in [
        (
            vec![
                ("OMPI_COMM_WORLD_RANK", "2"),
                ("OMPI_COMM_WORLD_SIZE", "4"),
                ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
                ("PMIX_RANK", "2"),
            ],
            "Open MPI",
            2,
            4,
            Some(0),
            Means::Mpi,
        ),
        (
            vec![("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1")],
            "PMI (MPICH)",
            1,
            2,
            Some(1),
            Means::Mpi,
        ),
        ([&[("SLURM_STEP_ID", "0")], &slurm[..]].concat(), "Slurm", 3, 8, Some(1), Means::Mpi),
        (
            vec![
                ("RANK", "5"),
                ("WORLD_SIZE", "16"),
                ("LOCAL_RANK", "5"),
                ("MASTER_ADDR", "node0"),
                ("MASTER_PORT", "29500"),
            ],
            "torchrun",
            5,
            16,
            Some(5),
            nccl("node0:29501"),
        ),
        (
            vec![("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "fd00::1"), ("MASTER_PORT", "7")],
            "torchrun",
            0,
            2,
            None,
            nccl("[fd00::1]:8"),
        ),
        (
            vec![
                ("PET_NNODES", "2"),
                ("PET_NODE_RANK", "1"),
                ("PET_MASTER_ADDR", "gems-node-0-0.gems"),
                ("PET_MASTER_PORT", "29400"),
            ],
            "Kubernetes (PET)",
            1,
            2,
            None,
            nccl("gems-node-0-0.gems:29401"),
        ),
        (
            vec![("PET_NNODES", "2"), ("PET_NODE_RANK", "1")],
            "Kubernetes (PET)",
            1,
            2,
            None,
            Means::Nccl(None),
        ),
        (
            vec![("GEMS_RANK", "1"), ("GEMS_WORLD_SIZE", "2"), ("NCCL_COMM_ID", "10.0.0.1:9000")],
            "by hand (GEMS_RANK)",
            1,
            2,
            None,
            nccl("10.0.0.1:9000"),
        ),
        (
            vec![("GEMS_RANK", "0"), ("GEMS_WORLD_SIZE", "2"), ("RANK", "1")],
            "by hand (GEMS_RANK)",
            0,
            2,
            None,
            Means::Mpi,
        ),
    ] {
        let found = find(&set).unwrap().unwrap();
        assert_eq!(found, Launcher { name, rank, size, local_rank: local, means });
    }
    // Started by hydra, whose proxies Slurm has started.
    let proxy = [("SLURM_STEP_ID", "0"), ("PMI_RANK", "5"), ("PMI_SIZE", "6")];
    let found = find(&[&proxy[..], &slurm].concat()).unwrap().unwrap();
    assert_eq!((found.rank, found.size), (5, 6));
    // What a batch script sees, one process, and nothing at all.
    for alone in [&slurm[..], &[("RANK", "0"), ("WORLD_SIZE", "1")], &[("RANK", "3")], &[]] {
        assert_eq!(find(alone).unwrap(), None, "{alone:?}");
    }
}

#[test]
fn variables_that_make_no_sense_are_named() {
    for (set, wanted) in [
        (vec![("RANK", "two"), ("WORLD_SIZE", "4")], "RANK: \"two\" instead of a number"),
        (vec![("PMI_RANK", "4"), ("PMI_SIZE", "4")], "rank 4 of 4"),
        (vec![("PET_NNODES", "2"), ("PET_NODE_RANK", "0"), ("PET_NPROC_PER_NODE", "8")], "8 processes a pod"),
        (
            vec![("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "65535")],
            "MASTER_PORT: \"65535\" instead of a port",
        ),
    ] {
        let text = find(&set).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}");
    }
}
