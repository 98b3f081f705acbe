#!/usr/bin/env bash
# Registers, shared memory and spills of every kernel on every architecture, as ptxas reports them.
#
#   scripts/kernel-report.sh [architecture ...]      default: 80 86 89 90a 100 120
#
# Fails when a kernel spills registers or has a stack frame of more than 256 bytes (the driver takes that much memory for
# every thread that the device can hold), when ptxas gives up the overlap of wgmma, and, where nvdisasm is
# there, when a tensor-core kernel lacks its instructions (HGMMA and bulk copies on sm_90a, HMMA and LDGSTS before, wide
# loads and stores everywhere) or a kernel has a clamp that ptxas gets wrong. NVCC names the compiler (default:
# .cuda/bin/nvcc, then PATH). Needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=${NVCC:-$([ -x .cuda/bin/nvcc ] && echo .cuda/bin/nvcc || command -v nvcc || true)}
[ -n "$nvcc" ] || { echo 'kernel-report: no CUDA compiler; `just cuda-toolchain` brings one' >&2; exit 1; }
disassembler=$([ -x .cuda/bin/nvdisasm ] && echo .cuda/bin/nvdisasm || command -v nvdisasm || true)
architectures=("$@")
[ $# -gt 0 ] || architectures=(80 86 89 90a 100 120)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

compile() { # file, architecture
  local name
  name=$(basename "$1" .cu)
  if ! "$nvcc" -cubin -std=c++17 -O3 -Xptxas -v -arch="sm_$2" "$1" -o "$out/$name.$2.cubin" 2>"$out/$name.$2.log"; then
    cat "$out/$name.$2.log" >&2
    return 1
  fi
}
export -f compile
export nvcc out
for architecture in "${architectures[@]}"; do
  for file in kernels/*.cu; do
    case $file in
      *_sm*) [[ $file == *_sm$architecture.cu ]] || continue ;;
    esac
    echo "$file $architecture"
  done
done | xargs -P "$(nproc)" -L 1 bash -c 'compile "$0" "$1"'

# ptxas speaks of one kernel at a time: its name, spills, registers.
printf '%-34s %-9s %9s %7s %9s\n' kernel arch registers barriers spilled
cat /dev/null > "$out/spilled"
for log in "$out"/*.log; do
  arch=sm_$(basename "$log" .log | sed 's/.*\.//')
  awk -v arch="$arch" -v spilled="$out/spilled" '
    /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2] }
    /bytes stack frame/ { frame = $1; stored = $5; loaded = $9 }
    /Used [0-9]+ registers/ {
      match($0, /Used [0-9]+ registers/); registers = substr($0, RSTART + 5, RLENGTH - 15)
      barriers = match($0, /used [0-9]+ barriers/) ? substr($0, RSTART + 5, RLENGTH - 14) : 0
      printf "%-34s %-9s %9d %7d %9d\n", kernel, arch, registers, barriers, stored + loaded
      if (frame > 256) printf "%s %s: a stack frame of %d bytes\n", kernel, arch, frame >> spilled
      if (stored + loaded > 0) printf "%s %s: %d bytes spilled\n", kernel, arch, stored + loaded >> spilled
    }
    /serialized|C75[0-9][0-9]/ { print arch ": " $0 >> spilled }' "$log"
done | sort

failed=0
if [ -s "$out/spilled" ]; then
  echo 'kernel-report: spilled registers, large stack frames, or wgmma without overlap:' >&2
  cat "$out/spilled" >&2
  failed=1
fi

# Every kernel of a tensor-core file must have each of the instructions (extended expressions).
expect() { # cubin, instruction ...
  local cubin=$1 instruction
  shift
  [ -f "$cubin" ] || return 0
  "$disassembler" -c "$cubin" > "$cubin.sass"
  for instruction in "$@"; do
    if ! grep -Eq "$instruction" "$cubin.sass"; then
      echo "kernel-report: $(basename "$cubin") has no $instruction" >&2
      failed=1
    fi
  done
}
if [ -n "$disassembler" ]; then
  for architecture in "${architectures[@]}"; do
    expect "$out/matmul.$architecture.cubin" 'HMMA\.16816' 'LDGSTS.*128' 'LDSM' 'STG\.E\.128'
    expect "$out/weight_grad.$architecture.cubin" 'HMMA\.16816' 'LDGSTS.*128' 'LDSM'
    expect "$out/attention.$architecture.cubin" 'HMMA\.16816' 'LDGSTS.*128' 'LDSM'
    for file in elementwise activation rmsnorm gather; do
      expect "$out/$file.$architecture.cubin" 'LDG\.E\.128' 'STG\.E\.128'
    done
  done
  expect "$out/matmul_sm90a.90a.cubin" 'HGMMA\.64x64x16' 'HGMMA\.64x128x16' 'HGMMA\.64x256x16' 'UTMALDG\.2D' 'SYNCS' 'USETMAXREG' 'STG\.E\.128'
  # ptxas 13.0 takes the predicate that a clamp leaves for "is the upper bound"; on an H100 it was not (docs/kernels.md).
  for architecture in "${architectures[@]}"; do
    [ "${architecture%a}" -ge 90 ] || continue
    for cubin in "$out"/*."$architecture".cubin; do
      "$disassembler" -c "$cubin" > "$cubin.sass" # not into a pipe: a grep that is done early would make it fail
      if grep -Eq 'VIMNMX\.([A-Z0-9]+\.)*RELU R[0-9]+, P[0-6]' "$cubin.sass"; then
        echo "kernel-report: $(basename "$cubin") compares what was clamped at both ends" >&2
        failed=1
      fi
    done
  done
  [ $failed -ne 0 ] || echo 'kernel-report: instructions of the tensor cores and wide accesses are there, and no clamp with a predicate'
else
  echo 'kernel-report: no nvdisasm, machine code was not looked at'
fi
exit $failed
