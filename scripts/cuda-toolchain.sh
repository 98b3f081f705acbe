#!/usr/bin/env bash
# Brings the CUDA compiler into .cuda/ from its Python wheels: no root, no driver, about 290 MB.
#
# Every package is pinned: the wheels name their dependencies without versions, and a compiler whose
# parts are of different releases fails in strange ways. build.rs finds .cuda/bin/nvcc by itself.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
  nvidia-cuda-nvdisasm==13.2.86 # reads machine code for scripts/kernel-report.sh; 13.0 has no wheel
)

command -v python3 >/dev/null || { echo 'cuda-toolchain: python3 is needed to fetch the wheels' >&2; exit 1; }
staging=$(mktemp -d .cuda-staging.XXXXXX)
trap 'rm -rf "$staging"' EXIT
python3 -m pip install --quiet --no-deps --only-binary :all: --target "$staging" "${PACKAGES[@]}"

# The wheels unpack to nvidia/cu13/{bin,include,lib,nvvm}: the shape of a toolkit.
rm -rf .cuda
mv "$staging/nvidia/cu13" .cuda
chmod +x .cuda/bin/* .cuda/nvvm/bin/*
touch build.rs  # so that the next build looks for it
.cuda/bin/nvcc --version | tail -n 2
echo 'cuda-toolchain: installed into .cuda/; the next cargo build compiles the kernels'
