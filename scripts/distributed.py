"""What scripts/distributed.sh checks; every check is a function, its first line says what holds."""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path

spec = importlib.util.spec_from_file_location("builds", Path(__file__).with_name("compare-builds.py"))
builds = importlib.util.module_from_spec(spec)
sys.modules["builds"] = builds
spec.loader.exec_module(builds)
builds.TIME_AND_MEMORY |= {"ranks", "exchange_ms", "wait_ms", "exchange_bytes", "slowest_rank", "example"}

# Open MPI wants to be told what a test machine is: root, more ranks than cores, a container.
ENVIRONMENT = os.environ | {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}
SHARDS = 4
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


# ---- the same bits ------------------------------------------------------------------------------

METHODS = {
    "gems": "null_space.tokens=400 distributed.check_every=2",
    "gems-all": "null_space.side=output gems.gates.kind=learned gems.surgery=pcgrad optimizer.clip_norm=0.05 "
                "optimizer.weight_decay=0.1 train.micro_batch_tokens=200 gems.refresh=sketch",
    "gems-heuristic": "gems.gates.kind=heuristic optimizer.norms=true optimizer.biases=true",
    "gems-metric": "null_space.side=metric null_space.pull=0.2 rehearsal.every=2 null_space.tokens=400",
    "galore": "gems.method=galore null_space.side=none",
    "lora": "gems.method=lora train.validate_every=3",
    "full": "gems.method=full null_space.side=none optimizer.embeddings=all",
    "rows": "gems.method=rows",
    "absent": "train.batch=3 optimizer.weight_decay=0.1 null_space.side=none null_space.item_rows=0.0",
    "semantic": "data.item_identity=semantic data.semantic.codes=4 data.semantic.levels=2 null_space.tokens=400",
}


def bits_under(name, sizes, methods=None):
    start = launcher(name)
    for method, text in METHODS.items():
        if methods and method not in methods:
            continue
        one = HOME / f"one-{method}.json"
        if not one.exists():
            one.write_text(json.dumps(trained(f"one-{method}", text)))
        for n in sizes:
            found = trained(f"{name}-{n}-{method}", text, start(n))
            same(f"{method} on {n} ranks", json.loads(one.read_text()), found)


def bits_openmpi():
    """Every method on 2, 3 and 4 ranks of Open MPI gives the bits of one process."""
    bits_under("openmpi", [2, 3, 4])


def bits_mpich():
    """The same on 3 ranks of MPICH."""
    bits_under("mpich", [3])


def bits_t5():
    """An encoder-decoder on 3 ranks."""
    start = launcher("openmpi")
    text = "optimizer.norms=true null_space.tokens=400"
    same("t5", trained("one-t5", text, (), "t5_v11"), trained("three-t5", text, start(3), "t5_v11"))


def resume():
    """A run of 4 ranks, gone on with inside a window on 1, 2, 3 and 4, ends as one that was never stopped."""
    start, text = launcher("openmpi"), "train.steps=8 gems.refresh=sketch null_space.side=none"
    whole = trained("resume-whole", text)
    trained("resume-four", text, start(4))
    for step in (HOME / "resume-four/checkpoints").glob("step-*"):
        if int(step.name.split("-")[1]) > 5:
            shutil.rmtree(step)
    for n in [1, 2, 3, 4]:
        shutil.copytree(HOME / "resume-four", HOME / f"resume-{n}", symlinks=True)
        again = [BINARY, "train", "--json", "--resume", "auto", "--out", f"resume-{n}"]
        done = run(again, start(n) if n > 1 else ())
        same(f"on {n} ranks", whole, builds.observed(HOME / f"resume-{n}", done))


def commands():
    """evaluate, rank --batch and basis print and write the same bytes on 1, 2 and 3 ranks; 7 requests on 4."""
    start = launcher("openmpi")
    run(command("commands", METHODS["gems"]))
    asked = [{"history": [f"i{k % 12}"]} if k % 3 else {"query": "oak desk"} for k in range(7)]
    (HOME / "asked.jsonl").write_text("".join(json.dumps(a) + "\n" for a in asked))
    basis = ["--model", "models/llama_tied", "--data", "data", *settings("")]
    calls = {
        "evaluate": ["evaluate", "--run", "commands", "--json", "--set", "evaluate.batch_tokens=40"],
        "rank": ["rank", "--run", "commands", "--batch", "asked.jsonl", "--top", "5"],
        "basis": ["basis", *basis, "--out", "learned.safetensors", "--set", "null_space.tokens=600", "--json"],
    }
    for name, call in calls.items():
        outputs = []
        for n in [1, 2, 3, 4]:
            done = run([BINARY, *call], start(n) if n > 1 else ())
            file = HOME / "learned.safetensors"
            outputs.append((done.stdout, file.read_bytes() if name == "basis" else b""))
        assert all(output == outputs[0] for output in outputs), f"{name} differs"


def bytes_sent():
    """The bytes of a step are 2 S (W - 1) / W, up to padding; one process sends none."""
    start, sent = launcher("openmpi"), {}
    for n in [2, 4]:
        run(command(f"bytes-{n}", "null_space.side=none"), start(n))
        lines = [json.loads(l) for l in (HOME / f"bytes-{n}/metrics.jsonl").read_text().splitlines()]
        sent[n] = lines[0]["exchange_bytes"]
        assert lines[0]["ranks"] == n and "wait_ms" in lines[0]
    # The same in every step, windows apart.
    assert abs(sent[4] / sent[2] - (3 / 4) / (1 / 2)) < 1e-3, sent


# ---- failures -----------------------------------------------------------------------------------

LONG = "train.steps=1000000 null_space.side=none checkpoint.every=20 distributed.timeout_s=3"


class Running:
    """A long run of n ranks."""

    def __init__(self, out, n, name="openmpi", text=""):
        self.run = HOME / out
        self.mark = f"{os.getpid()}-{out}"
        env = ENVIRONMENT | {"GEMS_TEST_MARK": self.mark}
        self.log = open(HOME / f"{out}.stderr", "w+")
        arguments = [*launcher(name)(n), *command(out, f"{LONG} {text}")]
        self.process = subprocess.Popen(arguments, cwd=HOME, env=env, stdout=subprocess.DEVNULL, stderr=self.log)
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
                if (path / "cmdline").read_text().startswith(BINARY + "\0"):
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
        again = [BINARY, "train", "--json", "--resume", "auto", "--out", running.run.name, "--steps", str(steps)]
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
    assert not (HOME / "mismatch").exists()


def different(what, change, wanted, n=3, code=2):
    """Rank 1 is started with something else."""
    script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && set -- "$@" {change}; exec "$@"'
    arguments = command(f"different-{what}", "null_space.side=none distributed.timeout_s=5")
    done = run(["sh", "-c", script, "sh", *arguments], launcher("openmpi")(n), False)
    assert done.returncode == code, (what, done.returncode, done.stderr)
    count = done.stderr.count(wanted)
    assert count >= n, f"{what}: said by {count} of {n} ranks: {done.stderr}"
    assert not (HOME / f"different-{what}/config.toml").exists()


def differing():
    """Ranks of other settings, leaves or data are refused, before anything is written, with both values on every rank."""
    different("settings", "--set train.lr=0.5", "has train.lr = 0.5")
    different("leaves", "--set train.shards=8", "ranks differ in train.shards: rank 0")
    data = HOME / "data-other"
    shutil.copytree(HOME / "data", data)
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(lines[1:]))
    different("data", "--set data.path=data-other", "ranks differ in the data")


def told():
    """An error of one rank is the message of all, and nothing hangs."""
    script = '[ "$OMPI_COMM_WORLD_RANK" = 1 ] && cd /; exec "$@"'
    done = run(["sh", "-c", script, "sh", *command("told", "distributed.timeout_s=5")], launcher("openmpi")(3), False)
    assert done.returncode not in (0, 137) and done.stderr.count("rank 1 (host") >= 2, done.stderr
    assert not (HOME / "told").exists()


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


def alone_commands():
    """What one process does is refused under a launcher, by name."""
    done = run([BINARY, "compare", "--runs", "a", "b"], launcher("openmpi")(2), False)
    assert done.returncode == 2, (done.returncode, done.stderr)
    done = run([BINARY, "export", "--run", "a", "--out", "b"], launcher("openmpi")(2), False)
    assert done.returncode == 2 and "`export` runs in one process" in done.stderr, done.stderr


def other_launchers():
    """torchrun's and Kubernetes's variables are understood, and what cannot be done with them is said."""
    for env, name in [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "torchrun has started 2"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "Kubernetes (PET) has started 2"),
    ]:
        done = run(command("other", ""), (), False, env=env)
        assert done.returncode == 2 and name in done.stderr, done.stderr


def doctor():
    """doctor says launcher, transport and library, under both MPIs; the program links neither them nor NCCL."""
    for name, library in [("openmpi", "Open MPI"), ("mpich", "MPICH")]:
        found = json.loads(run([BINARY, "doctor", "--json"], launcher(name)(2)).stdout.splitlines()[-1])["ranks"]
        assert found["size"] == 2 and library in found["transport"], found
    linked = run(["ldd", BINARY]).stdout
    assert "mpi" not in linked and "nccl" not in linked, linked


def nccl():
    """doctor finds NCCL by its real name in a wheel; what is no NCCL is not taken for one."""
    wheels = [p for p in [os.environ.get("VIRTUAL_ENV"), sys.prefix] if p]
    found = [w for w in wheels if list(Path(w).glob("lib/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2"))]
    if not found:
        raise Skip("no wheel of NCCL is in the environment (pip install nvidia-nccl-cu13)")
    checks = json.loads(run([BINARY, "doctor", "--json"], env={"VIRTUAL_ENV": found[0]}).stdout.splitlines()[-1])["checks"]
    said = [c["found"] for c in checks if c["name"] == "NCCL"]
    assert len(said) == 1 and said[0].startswith("2.") and "libnccl.so.2" in said[0], said


# ---- other hosts and schedulers -----------------------------------------------------------------


class TwoHosts:
    """Two network namespaces, joined by a pair of links; Open MPI starts processes there as on hosts `hosta` and `hostb`."""

    def __enter__(self):
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise Skip("two hosts need root and iproute2")
        launcher("openmpi")
        for line in [
            "ip netns add gemsa", "ip netns add gemsb", "ip link add gemsva type veth peer name gemsvb",
            "ip link set gemsva netns gemsa", "ip link set gemsvb netns gemsb",
            "ip -n gemsa addr add 10.77.0.1/24 dev gemsva", "ip -n gemsb addr add 10.77.0.2/24 dev gemsvb",
            "ip -n gemsa link set gemsva up", "ip -n gemsb link set gemsvb up",
            "ip -n gemsa link set lo up", "ip -n gemsb link set lo up",
        ]:
            done = subprocess.run(line.split(), capture_output=True, text=True)
            if done.returncode != 0:
                self.__exit__()
                raise Skip(f"{line}: {done.stderr.strip()}")
        agent = HOME / "agent"
        agent.write_text(
            '#!/bin/bash\nhost=$1; shift; case $host in 10.77.0.1) n=gemsa h=hosta;; *) n=gemsb h=hostb;; esac\n'
            'exec ip netns exec $n unshare -u bash -c "hostname $h; $*"\n'
        )
        agent.chmod(0o755)
        self.prefix = [
            "ip", "netns", "exec", "gemsa", "unshare", "-u", "bash", "-c", 'hostname hosta; exec "$@"', "bash",
            "mpirun.openmpi", "--oversubscribe", "--bind-to", "none", "--mca", "plm_rsh_agent", str(agent),
            "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.77.0.0/24",
            "--mca", "oob_tcp_if_include", "10.77.0.0/24", "--host", "10.77.0.1:2,10.77.0.2:2",
        ]
        return self

    def __exit__(self, *_):
        for name in ["gemsa", "gemsb"]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def two_hosts():
    """Two hosts over TCP give the same bits; a cut link is named on both sides, each of which ends by itself."""
    with TwoHosts() as hosts:
        text = METHODS["gems"]
        four = [*hosts.prefix, "-n", "4"]
        same("on two hosts", trained("hosts-one", text), trained("hosts-four", text, four))
        said = (HOME / "hosts-four/log.txt").read_text()
        assert "4 ranks on hosta, hostb" in said, said
        log = open(HOME / "cut.stderr", "w+")
        arguments = [*four, *command("cut", LONG)]
        process = subprocess.Popen(arguments, cwd=HOME, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=log)
        start = time.time()
        while not any((HOME / "cut").glob("checkpoints/step-*")):
            assert process.poll() is None and time.time() - start < 90, "no checkpoint came"
            time.sleep(0.1)
        subprocess.run("ip -n gemsa link set gemsva down".split(), check=True)
        # mpirun itself may wait for ever; the ranks do not, and their word is in their logs.
        logs, start = lambda: {p.name: p.read_text() for p in (HOME / "cut").glob("log.[0-9].txt")}, time.time()
        while len(logs()) < 4 and time.time() - start < 15:
            time.sleep(0.2)
        found = logs()
        process.kill()
        assert len(found) == 4, found
        for rank, text in found.items():
            other = "hostb" if rank in ("log.0.txt", "log.1.txt") else "hosta"
            assert f"(host {other}," in text and "no word from" in text, (rank, text)


def slurm():
    """srun with PMIx (Open MPI) and PMI-2 (MPICH) gives the same bits; with the wrong one it is refused."""
    with Slurm() as found:
        text = METHODS["gems"]
        one = trained("slurm-one", text)
        for kind, library in [("pmix", "libmpi.so.40"), ("pmi2", "libmpich.so.12")]:
            kinds = subprocess.run(["srun", "--mpi=list"], env=found.env, capture_output=True, text=True)
            if kind not in kinds.stdout + kinds.stderr:
                print(f"    (this Slurm has no {kind})")
                continue
            prefix = ["srun", f"--mpi={kind}", "-n", "2", "--overcommit"]
            done = run(command(f"slurm-{kind}", text), prefix, env=found.env | {"GEMS_MPI": library})
            same(kind, one, builds.observed(HOME / f"slurm-{kind}", done))
        prefix = ["srun", "--mpi=none", "-n", "2", "--overcommit"]
        done = run(command("slurm-none", text), prefix, False, env=found.env | {"GEMS_MPI": "libmpich.so.12"})
        assert done.returncode != 0 and not (HOME / "slurm-none").exists(), done.stderr
        assert "do not belong together" in done.stderr, done.stderr


class Slurm:
    """A Slurm of one node, of the machine's own programs, for as long as it is needed."""

    def __enter__(self):
        missing = [p for p in ["srun", "slurmctld", "slurmd", "munged"] if not shutil.which(p)]
        if os.geteuid() != 0 or missing:
            raise Skip(f"Slurm needs root and {', '.join(missing) or 'nothing else'}")
        self.dir = Path(tempfile.mkdtemp(prefix="gems-slurm-"))
        self.dir.chmod(0o755)
        host, cores = os.uname().nodename, os.cpu_count()
        socket = self.dir / "munge.socket"
        (self.dir / "slurm.conf").write_text(f"""
ClusterName=gems
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={socket}
CryptoType=crypto/munge
StateSaveLocation={self.dir}/state
SlurmdSpoolDir={self.dir}/spool
SlurmctldPidFile={self.dir}/ctld.pid
SlurmdPidFile={self.dir}/d.pid
SlurmctldLogFile={self.dir}/ctld.log
SlurmdLogFile={self.dir}/d.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SchedulerType=sched/builtin
SelectType=select/linear
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
""")
        for name in ["state", "spool"]:
            (self.dir / name).mkdir()
        key = self.dir / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.env = {"SLURM_CONF": str(self.dir / "slurm.conf")}
        env = os.environ | self.env
        munge = ["munged", "-F", "--force", "--key-file", key, "--socket", socket, "--pid-file", self.dir / "m.pid",
                 "--log-file", self.dir / "m.log", "--seed-file", self.dir / "m.seed"]
        self.daemons = []
        for daemon in [munge, ["slurmctld", "-D"], ["slurmd", "-D"]]:
            self.daemons.append(subprocess.Popen(daemon, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(1)
        for _ in range(30):
            done = subprocess.run(["srun", "-n", "1", "true"], env=env, capture_output=True, text=True, timeout=20)
            if done.returncode == 0:
                self.env = env
                return self
            time.sleep(1)
        self.__exit__()
        raise Skip(f"Slurm did not start: {done.stderr.strip()[-300:]}")

    def __exit__(self, *_):
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            daemon.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def scaling():
    """Medians of steps of the demo's model on 1, 2 and 4 ranks of one thread: the same step, and four times its rank's."""
    start = launcher("openmpi")
    quiet = "train.steps=16 train.validate_every=0 train.evaluate_before=false train.evaluate_after=false train.export=false"
    fixed = f"{quiet} train.shards=4 train.micro_batch_tokens=4096 null_space.tokens=600 gems.refresh_every=8 device=cpu"
    print("ranks | step | ms | tokens/s | exchange ms | wait ms | MB sent")
    for kind, of in [("strong", lambda n: 64), ("weak", lambda n: 16 * n)]:
        for n in [1, 2, 4]:
            out, sets = f"scaling-{kind}-{n}", f"{fixed} train.batch_per_task={{rec={of(n) // 2},search={of(n) // 2}}}".split()
            call = [BINARY, "train", "--json", "--threads", "1", "--out", out]
            run([*call, *(w for s in sets for w in ("--set", s))], start(n) if n > 1 else ())
            lines = [json.loads(l) for l in (HOME / out / "metrics.jsonl").read_text().splitlines()][4:]
            median = lambda key: sorted(l.get(key, 0) for l in lines)[len(lines) // 2]
            print(f"{n} | {kind}, {of(n)} examples | {median('step_ms'):.0f} | {median('tokens_per_second'):.0f} | "
                  f"{median('exchange_ms'):.1f} | {median('wait_ms'):.1f} | {median('exchange_bytes') / 1e6:.1f}", flush=True)


CHECKS = [
    doctor, bits_openmpi, bits_mpich, bits_t5, resume, commands, bytes_sent, uneven, killed, stopped, mismatch, differing,
    told, asked_to_stop, bad_numbers, alone_commands, other_launchers, nccl, two_hosts, slurm,
]


def main():
    global HOME, BINARY
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=lambda text: str(Path(text).resolve()), required=True)
    parser.add_argument("--scaling", action="store_true", help="measure, and check nothing")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="checks of this name")
    args = parser.parse_args()
    BINARY, failed = args.binary, 0
    with tempfile.TemporaryDirectory(prefix="gems-ranks-") as home:
        HOME = Path(home) / "home"
        HOME.mkdir()
        builds.write_inputs(HOME)
        if args.scaling:
            return scaling()
        for check in CHECKS:
            if not fnmatchcase(check.__name__, args.only):
                continue
            start, word = time.time(), "PASS"
            try:
                check()
                why = check.__doc__
            except Skip as reason:
                word, why = "SKIP", reason
            except (AssertionError, KeyError, OSError, subprocess.TimeoutExpired) as error:
                word, why, failed = "FAIL", error, failed + 1
            print(f"{word}  {check.__name__} ({time.time() - start:.0f} s): {why}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
