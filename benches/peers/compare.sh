#!/usr/bin/env bash
# The engine and its PyTorch peers on the same models and batches, step by step in turn, in one run.
#
#   benches/peers/compare.sh [--shape llama-tiny|llama-60m|t5-small]... [--rounds N] [--threads N]
#
# Makes a virtual environment in target/peers/venv (or uses $PEERS_VENV) and random checkpoints beside it.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=${PEERS_VENV:-target/peers/venv}
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet -r benches/peers/requirements.txt
fi
cargo build --release --locked --example peers-engine
exec "$venv/bin/python" benches/peers/compare.py --engine "${CARGO_TARGET_DIR:-target}"/release/examples/peers-engine "$@"
