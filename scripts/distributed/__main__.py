"""What scripts/distributed.sh checks; every check is a function, its first line says what holds."""

import argparse
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path

import runs
from bits import bits_mpich, bits_openmpi, bits_t5, bytes_sent, commands, resume
from failures import asked_to_stop, bad_numbers, differing, killed, mismatch, stopped, told, uneven
from found import alone_commands, doctor, nccl, other_launchers
from hosts import slurm, two_hosts
from runs import Skip, builds
from scaling import scaling

CHECKS = [
    doctor, bits_openmpi, bits_mpich, bits_t5, resume, commands, bytes_sent, uneven, killed, stopped, mismatch, differing,
    told, asked_to_stop, bad_numbers, alone_commands, other_launchers, nccl, two_hosts, slurm,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=lambda text: str(Path(text).resolve()), required=True)
    parser.add_argument("--scaling", action="store_true", help="measure, and check nothing")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="checks of this name")
    args = parser.parse_args()
    runs.BINARY, failed = args.binary, 0
    with tempfile.TemporaryDirectory(prefix="gems-ranks-") as home:
        runs.HOME = Path(home) / "home"
        runs.HOME.mkdir()
        builds.write_inputs(runs.HOME)
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
