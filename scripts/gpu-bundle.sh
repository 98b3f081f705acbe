#!/usr/bin/env bash
# Everything that a GPU machine without Rust needs, as one archive: the engine, the tests and the benches as programs,
# the reference data, the PyTorch peers and the scripts that run them.
#
#   scripts/gpu-bundle.sh [ARCHIVE]      default: target/gems-gpu.tar.gz
#
# On the GPU machine: tar xf gems-gpu.tar.gz && cd gems-gpu && scripts/gpu-check.sh && scripts/gpu-bench.sh
# The machine needs the same kind of processor and a C library no older than this one's.
set -euo pipefail
cd "$(dirname "$0")/.."
archive=${1:-target/gems-gpu.tar.gz}

# An archive without GPU kernels is of no use there: without nvcc the build fails, unless GEMS_CUDA says otherwise.
export GEMS_CUDA=${GEMS_CUDA:-require}
cargo build --release --locked --bins --test suite --bench ops --example peers-ranker
# program NAME FLAG: where cargo put the program of a test or bench.
program() {
  cargo build --release --locked "$2" "$1" --message-format=json 2>/dev/null |
    sed -n '/"name":"'"$1"'"/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}
suite=$(program suite --test)
ops=$(program ops --bench)

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/gems-gpu
mkdir -p "$root/bin/deps" "$root/scripts" "$root/peers/shapes" "$root/benches/peers" "$root/tests"
cp target/release/gems-engine target/release/examples/peers-ranker "$root/bin/"
cp "$suite" "$root/bin/deps/suite"
cp "$ops" "$root/bin/ops"
# Not the tests: the machine names source lines by their line tables.
strip "$root/bin/gems-engine" "$root/bin/peers-ranker" "$root/bin/ops" 2>/dev/null || true
cp scripts/gpu-check.sh scripts/gpu-bench.sh scripts/gpu-common.sh "$root/scripts/"
cp benches/peers/gpu/peer.py "$root/peers/"
cp benches/peers/evaluate.py "$root/benches/peers/"
cp src/model/shapes/*.json "$root/peers/shapes/"
cp -r tests/golden "$root/tests/"
{
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown)"
  echo "built  $(date -u +%Y-%m-%dT%H:%MZ) on $(uname -m), $(ldd --version 2>/dev/null | head -1)"
  echo "rustc  $(rustc --version)"
  "$root/bin/gems-engine" doctor --out "$stage" 2>/dev/null | grep ' kernels ' || true
} > "$root/VERSION"
mkdir -p "$(dirname "$archive")"
tar czf "$archive" -C "$stage" gems-gpu
cat "$root/VERSION"
echo "wrote $archive ($(du -h "$archive" | cut -f1))"
