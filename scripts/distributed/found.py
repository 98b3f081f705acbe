"""What is found and refused: launchers, libraries, commands of one process."""

import json
import os
import sys
from pathlib import Path

import runs
from runs import Skip, command, launcher, run


def alone_commands():
    """What one process does is refused under a launcher, by name."""
    done = run([runs.BINARY, "compare", "--runs", "a", "b"], launcher("openmpi")(2), False)
    assert done.returncode == 2, (done.returncode, done.stderr)
    done = run([runs.BINARY, "export", "--run", "a", "--out", "b"], launcher("openmpi")(2), False)
    assert done.returncode == 2 and "`export` runs in one process" in done.stderr, done.stderr


def other_launchers():
    """torchrun's and Kubernetes's variables are understood; without a GPU, or a place to meet, that is said."""
    for env, words in [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["torchrun has started 2", "does not say where they meet"]),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
         ["torchrun has started 2", "there is no CUDA driver here", "mpirun or srun"]),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "node0", "PET_MASTER_PORT": "29400"},
         ["Kubernetes (PET) has started 2", "NCCL, which needs a GPU each"]),
    ]:
        done = run(command("other", ""), (), False, env=env)
        assert done.returncode == 2 and all(word in done.stderr for word in words), done.stderr


def doctor():
    """doctor says launcher, transport and library, under both MPIs; the program links neither them nor NCCL."""
    for name, library in [("openmpi", "Open MPI"), ("mpich", "MPICH")]:
        found = json.loads(run([runs.BINARY, "doctor", "--json"], launcher(name)(2)).stdout.splitlines()[-1])["ranks"]
        assert found["size"] == 2 and library in found["transport"], found
    linked = run(["ldd", runs.BINARY]).stdout
    assert "mpi" not in linked and "nccl" not in linked, linked


def nccl():
    """doctor finds NCCL by its real name in a wheel; what is no NCCL is not taken for one."""
    wheels = [p for p in [os.environ.get("VIRTUAL_ENV"), sys.prefix] if p]
    found = [w for w in wheels if list(Path(w).glob("lib/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2"))]
    if not found:
        raise Skip("no wheel of NCCL is in the environment (pip install nvidia-nccl-cu13)")
    checks = json.loads(run([runs.BINARY, "doctor", "--json"], env={"VIRTUAL_ENV": found[0]}).stdout.splitlines()[-1])["checks"]
    said = [c["found"] for c in checks if c["name"] == "NCCL"]
    assert len(said) == 1 and said[0].startswith("2.") and "libnccl.so.2" in said[0], said
