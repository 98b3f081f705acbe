"""Two hosts, as network namespaces, and Slurm."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import runs
from bits import METHODS
from failures import LONG
from runs import ENVIRONMENT, Skip, builds, command, launcher, run, same, trained


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
        agent = runs.HOME / "agent"
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
        said = (runs.HOME / "hosts-four/log.txt").read_text()
        assert "4 ranks on hosta, hostb" in said, said
        # In two levels: of 2 S 3/4 bytes that each rank sends 2 (S / 2) 1/2 leave its machine.
        for line in map(json.loads, (runs.HOME / "hosts-four/metrics.jsonl").read_text().splitlines()):
            sent, outside = line["exchange_bytes"], line["exchange_bytes_outside"]
            assert abs(outside / sent - 1 / 3) < 1e-3, (sent, outside)
        log = open(runs.HOME / "cut.stderr", "w+")
        # Who is cut off while a checkpoint is written waits as long as for a phase.
        arguments = [*four, *command("cut", f"{LONG} distributed.phase_timeout_s=15")]
        process = subprocess.Popen(arguments, cwd=runs.HOME, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=log)
        start = time.time()
        while not any((runs.HOME / "cut").glob("checkpoints/step-*")):
            assert process.poll() is None and time.time() - start < 90, "no checkpoint came"
            time.sleep(0.1)
        subprocess.run("ip -n gemsa link set gemsva down".split(), check=True)
        # mpirun itself may wait for ever; the ranks do not, and their word is in their logs.
        logs, start = lambda: {p.name: p.read_text() for p in (runs.HOME / "cut").glob("log.[0-9].txt")}, time.time()
        while len(logs()) < 4 and time.time() - start < 60:
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
            same(kind, one, builds.observed(runs.HOME / f"slurm-{kind}", done))
        prefix = ["srun", "--mpi=none", "-n", "2", "--overcommit"]
        done = run(command("slurm-none", text), prefix, False, env=found.env | {"GEMS_MPI": "libmpich.so.12"})
        assert done.returncode != 0 and not (runs.HOME / "slurm-none").exists(), done.stderr
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
