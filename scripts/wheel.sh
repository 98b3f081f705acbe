#!/usr/bin/env bash
# The wheel: the program with its CUDA kernels, the Python module over it, the licence notices.
#
#   scripts/wheel.sh [TARGET]   builds into target/wheels, looks into it, installs it and runs it
#   scripts/wheel.sh --check    the metadata only, without a compiler: seconds
#   scripts/wheel.sh --try FILE installs a wheel into a fresh environment and runs what the README says of it
#
# TARGET is a Rust target, x86_64-unknown-linux-gnu by default. Zig links against the C library of manylinux_2_28 (glibc
# 2.28, such as RHEL 8), whatever this machine has. The GPU kernels are in it if there is a CUDA compiler: GEMS_CUDA=require
# insists, GEMS_CUDA=off leaves them out.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
limit_mb=100 # what the Python Package Index takes

# maturin builds, zig links, auditwheel says what the wheel asks of a machine.
tools() {
  local tools=$target/wheel-tools
  { [ -x "$tools/bin/maturin" ] || python3 -m venv "$tools"; } &&
    "$tools/bin/pip" install --quiet --disable-pip-version-check 'maturin==1.16.0' "$@" &&
    PATH=$(cd "$tools/bin" && pwd):$PATH
}

check() {
  tools || { echo 'SKIP  the metadata of the wheel: maturin could not be brought (python3-venv, PyPI)'; return; }
  local out
  out=$(mktemp -d)
  trap 'rm -rf "$out"' RETURN
  maturin pep517 write-dist-info --metadata-directory "$out" --interpreter python3 >/dev/null
  python3 - "$out"/gems_engine-*.dist-info <<'PY'
import re, sys
from pathlib import Path

info = Path(sys.argv[1])
metadata = (info / "METADATA").read_text()
version = re.search(r'^version = "(.+)"', Path("Cargo.toml").read_text(), re.M).group(1)
assert f"\nVersion: {version}\n" in metadata, f"the version is not {version}"
assert "\nName: gems-engine\n" in metadata and "\nLicense-Expression: MIT OR Apache-2.0\n" in metadata, metadata[:600]
for notice in ["LICENSE-MIT", "LICENSE-APACHE", "assets/LICENSE-wordnet", "assets/third-party-licences.txt"]:
    assert (info / "licenses" / notice).read_text() == Path(notice).read_text(), f"{notice} is not in the wheel"
print(f"{info.name}: metadata and notices as they should be")
PY
}

build() {
  tools 'ziglang==0.17.1' 'auditwheel==6.8.2'
  rm -rf "$target/wheels"
  maturin build --release --zig --compatibility manylinux_2_28 --target "$1" --out "$target/wheels"
}

look() {
  tools 'auditwheel==6.8.2'
  local mb
  mb=$(($(stat -c %s "$1") / 1000000))
  echo "$(basename "$1"): $mb MB"
  [ "$mb" -lt $limit_mb ] || { echo "wheel: more than the $limit_mb MB that an index takes" >&2; exit 1; }
  auditwheel show "$1"
  python3 -m zipfile --list "$1"
}

try() {
  local wheel room started
  wheel=$(realpath "$1")
  room=$(mktemp -d)
  trap 'rm -rf "$room"' RETURN
  started=$(date +%s%N)
  python3 -m venv "$room/env"
  "$room/env/bin/pip" install --quiet --disable-pip-version-check --no-index "$wheel"
  (
    cd "$room"
    # The first line of --json is the first step.
    env/bin/gems-engine train --json --steps 2 --set train.evaluate_after=false 2>log | while read -r line; do
      case $line in '{"step":1,'*) echo "install to the first step: $((($(date +%s%N) - started) / 1000000)) ms" ;; esac
    done
    env/bin/python -m gems_engine rank --run runs/demo --history samba,curling --query 'small dog' --top 3
    env/bin/gems-engine licences | grep -q WordNet
    env/bin/gems-engine doctor | grep ' kernels '
  )
  GEMS_ENGINE=$room/env/bin/gems-engine "$room/env/bin/python" -m unittest discover --quiet python/tests
}

case ${1:-} in
  --check) check ;;
  --try) try "$2" ;;
  -*) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
  *)
    build "${1:-x86_64-unknown-linux-gnu}"
    wheel=$(ls "$target"/wheels/*.whl)
    look "$wheel"
    case $wheel in *"$(uname -m)".whl) try "$wheel" ;; *) echo "$(basename "$wheel"): of another machine, not tried" ;; esac
    ;;
esac
