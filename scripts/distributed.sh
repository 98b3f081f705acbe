#!/usr/bin/env bash
# Runs of several ranks, under every launcher that is here: the same bits, and every failure by its name (docs/distributed.md).
#
#   scripts/distributed.sh [--install] [--only PATTERN] [--binary FILE]
#
# --install brings the launchers first (Debian: Open MPI, MPICH, Slurm, iproute2; needs root). What is not here is skipped,
# and said. Two hosts and Slurm need root.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --install ]; then
  shift
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    openmpi-bin mpich libpmix-dev slurm-wlm munge iproute2 python3 >/dev/null; } ||
    echo 'SKIP  the launchers could not be installed: what is not here is skipped'
fi

binary=target/release/gems-engine
[ -n "${CARGO_TARGET_DIR:-}" ] && binary=$CARGO_TARGET_DIR/release/gems-engine
[ -x "$binary" ] || { GEMS_CUDA=${GEMS_CUDA:-off} cargo build --release --locked --bin gems-engine; }
exec python3 scripts/distributed --binary "$binary" "$@"
