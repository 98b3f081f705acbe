"""Ranks that die, stand still, differ, or are asked to end."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import runs
from runs import ENVIRONMENT, command, launcher, run, same, trained

LONG = "train.steps=1000000 null_space.side=none checkpoint.every=20 distributed.timeout_s=3"


class Running:
    """A long run of n ranks."""

    def __init__(self, out, n, name="openmpi", text=""):
        self.run = runs.HOME / out
        self.mark = f"{os.getpid()}-{out}"
        env = ENVIRONMENT | {"GEMS_TEST_MARK": self.mark}
        self.log = open(runs.HOME / f"{out}.stderr", "w+")
        arguments = [*launcher(name)(n), *command(out, f"{LONG} {text}")]
        self.process = subprocess.Popen(arguments, cwd=runs.HOME, env=env, stdout=subprocess.DEVNULL, stderr=self.log)
        self.until(lambda: any(self.run.glob("checkpoints/step-*")), "its first checkpoint")

    def until(self, true, what, limit=90):
        start = time.time()
        while not true():
            ended = self.process.poll() is not None
            assert not ended and time.time() - start < limit, f"{what} did not come: {self.said()}"
            time.sleep(0.05)

    def pid(self, rank):
        """The process of a rank."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                names = dict(p.split("=", 1) for p in (path / "environ").read_text().split("\0") if "=" in p)
            except (OSError, UnicodeDecodeError):
                continue
            ranked = names.get("OMPI_COMM_WORLD_RANK", names.get("PMI_RANK")) == str(rank)
            if names.get("GEMS_TEST_MARK") == self.mark and ranked:
                if (path / "cmdline").read_text().startswith(runs.BINARY + "\0"):
                    return int(path.name)
        raise AssertionError(f"rank {rank} was not found")

    def end(self, limit):
        """Exit code and seconds until the end."""
        start = time.time()
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"did not end in {limit} s: {self.said()}")
        return code, time.time() - start

    def said(self):
        self.log.flush()
        return Path(self.log.name).read_text()[-3000:]


def killed():
    """A killed rank ends all; the last checkpoint is good, and --resume auto goes on."""
    for name in ["openmpi", "mpich"]:
        running = Running(f"killed-{name}", 3, name)
        os.kill(running.pid(1), signal.SIGKILL)
        code, took = running.end(5)
        assert code != 0 and took < 3, (code, took)
        steps = max(int(s.name.split("-")[1]) for s in running.run.glob("checkpoints/step-*")) + 2
        again = [runs.BINARY, "train", "--json", "--resume", "auto", "--out", running.run.name, "--steps", str(steps)]
        run(again, launcher(name)(2))


def stopped():
    """A stopped rank, rank 0 too, is named with host, process and step within the time limit, on stderr and in a log."""
    for name, which in [("openmpi", 1), ("openmpi", 0), ("mpich", 1)]:
        running = Running(f"stopped-{name}-{which}", 3, name)
        pid = running.pid(which)
        os.kill(pid, signal.SIGSTOP)
        code, took = running.end(12)
        said = running.said()
        assert code != 0 and took < 3 + 5, (code, took)
        wanted = [f"no word from rank {which} (host {os.uname().nodename}, process {pid})", "step ", "2 of 3 ranks answered"]
        assert all(w in said for w in wanted), said
        logs = "".join(p.read_text() for p in running.run.glob("log.[0-9]*.txt"))
        assert wanted[0] in logs, logs


def mismatch():
    """A library that is not the launcher's is refused before anything is written, with both numbers."""
    start = launcher("openmpi")
    launcher("mpich")
    done = run(command("mismatch", "null_space.side=none"), start(2), False, env={"GEMS_MPI": "libmpich.so.12"})
    assert done.returncode == 2 and "says rank 0 of 1" in done.stderr and "of 2" in done.stderr, done.stderr
    assert not (runs.HOME / "mismatch").exists()


def different(what, change, wanted, n=3, code=2):
    """Rank 1 is started with something else."""
    script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && set -- "$@" {change}; exec "$@"'
    arguments = command(f"different-{what}", "null_space.side=none distributed.timeout_s=5")
    done = run(["sh", "-c", script, "sh", *arguments], launcher("openmpi")(n), False)
    assert done.returncode == code, (what, done.returncode, done.stderr)
    count = done.stderr.count(wanted)
    assert count >= n, f"{what}: said by {count} of {n} ranks: {done.stderr}"
    assert not (runs.HOME / f"different-{what}/config.toml").exists()


def differing():
    """Ranks of other settings, leaves or data are refused, before anything is written, with both values on every rank."""
    different("settings", "--set train.lr=0.5", "has train.lr = 0.5")
    different("leaves", "--set train.shards=8", "ranks differ in train.shards: rank 0")
    data = runs.HOME / "data-other"
    shutil.copytree(runs.HOME / "data", data)
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(lines[1:]))
    different("data", "--set data.path=data-other", "ranks differ in the data")


def told():
    """An error of one rank is the message of all, and nothing hangs."""
    script = '[ "$OMPI_COMM_WORLD_RANK" = 1 ] && cd /; exec "$@"'
    done = run(["sh", "-c", script, "sh", *command("told", "distributed.timeout_s=5")], launcher("openmpi")(3), False)
    assert done.returncode not in (0, 137) and done.stderr.count("rank 1 (host") >= 2, done.stderr
    assert not (runs.HOME / "told").exists()


def uneven():
    """A step of fewer examples than leaves, and fewer leaves than ranks."""
    start = launcher("openmpi")
    text = "train.batch=3 null_space.side=none"
    same("3 examples", trained("uneven-one", text), trained("uneven-four", text, start(4)))
    done = run(command("uneven-six", text), start(6), False)
    assert done.returncode == 2 and "4 leaves of a step cannot feed 6 ranks" in done.stderr, done.stderr


def asked_to_stop():
    """SIGUSR1 to mpirun, and a file `stop`: one checkpoint, code 130 on all ranks; then it goes on."""
    for way in ["signal", "file"]:
        running = Running(f"asked-{way}", 3)
        if way == "signal":
            running.process.send_signal(signal.SIGUSR1)
        else:
            (running.run / "stop").touch()
        code, _ = running.end(20)
        said = running.said()
        # Of each rank a message, and the same as JSON.
        assert code == 130 and said.count("everything is saved") == 6, (code, said)
        assert not (running.run / "stop").exists()


def bad_numbers():
    """Gradients that are not finite on all ranks end the run with one message; early stopping ends all ranks too."""
    start = launcher("openmpi")
    text = "train.lr=1e30 optimizer.lr_rows=1e30 null_space.side=none train.steps=40"
    done = run(command("bad", text), start(3), False)
    assert done.returncode == 1 and done.stderr.count("not finite") >= 3, done.stderr
    text = "null_space.side=none train.validate_every=1 train.patience=2 train.best_metric=loss train.steps=30 train.lr=0.3"
    same("early", trained("early-one", text), trained("early-three", text, start(3)))
