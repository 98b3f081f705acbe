"""Runs of one or several ranks: how they are started, and what of them must not differ."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("builds", Path(__file__).parent.with_name("compare-builds.py"))
builds = importlib.util.module_from_spec(spec)
sys.modules["builds"] = builds
spec.loader.exec_module(builds)
builds.TIME_AND_MEMORY |= {"ranks", "exchange_ms", "wait_ms", "exchange_bytes", "exchange_bytes_outside", "slowest_rank", "example"}

# Open MPI wants to be told what a test machine is: root, more ranks than cores, a container.
ENVIRONMENT = os.environ | {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}
SHARDS = 4
# Where the inputs are and runs are written, and the program: set by whoever checks.
HOME = BINARY = None


class Skip(Exception):
    """What a check needs is not here."""


def launcher(name):
    """The command that starts n ranks."""
    programs = {
        "openmpi": ["mpirun.openmpi", "--oversubscribe", "--bind-to", "none", "-n"],
        "mpich": ["mpiexec.hydra", "-n"],
    }
    first, *rest = programs[name]
    if not shutil.which(first):
        raise Skip(f"{first} is not here")
    return lambda n: [first, *rest, str(n)]


def settings(text):
    """Settings over those of the short runs of compare-builds."""
    found = dict(word.split("=", 1) for word in f"device=cpu train.shards={SHARDS} {builds.SHORT} {text}".split())
    return [word for key, value in found.items() for word in ("--set", f"{key}={value}")]


def command(out, text, model="llama_tied"):
    """A training run."""
    source = ["--model", f"models/{model}", "--set", "data.path=data"]
    return [BINARY, "train", "--json", "--out", out, *source, *settings(text)]


def run(arguments, prefix=(), check=True, **more):
    """Runs a command where the inputs are."""
    env = ENVIRONMENT | more.pop("env", {})
    done = subprocess.run([*prefix, *arguments], cwd=HOME, env=env, capture_output=True, text=True, timeout=200, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr[-1500:]}")
    return done


def same(what, before, after):
    """Fields of two runs that must not differ."""
    differing = builds.differences(before, after)
    shown = [f"{f}: {before.get(f)} -> {after.get(f)}" for f in differing[:4]]
    assert not differing, f"{what}: {len(differing)} of {len(before)} fields differ: {shown}"


def trained(out, text, prefix=(), model="llama_tied"):
    return builds.observed(HOME / out, run(command(out, text, model), prefix))
