#!/usr/bin/env bash
# Is everything right on this GPU? Every kernel test and golden test on cuda, determinism, a training run against the CPU's,
# two ranks through NCCL, compute-sanitizer; one table, at most 8 minutes, no Rust needed (see gpu-bundle.sh).
#
#   scripts/gpu-check.sh [--out DIR] [--limit SECONDS] [--device cuda|simt]
#
# Without a GPU it goes as far as the device: the same steps on the host SIMT machine and the null device, and says
# what was not checked. Results are written as they come: table.txt, table.tsv, a log a row.
set -uo pipefail
out=gpu-check limit=480 device='' failed=0
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 ;;
    --limit) limit=$2 ;;
    --device) device=$2 ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift 2
done
mkdir -p "$out" && out=$(cd "$out" && pwd) && rm -f "$out"/table.*
. "$(dirname "$0")/gpu-common.sh"

find_device
on=$device
[ "$device" != none ] || on=simt
[ "$on" != simt ] || slower=4 # the CPU may have other work
run 'doctor' 20 "$engine" doctor --out "$out"
if [ "$on" = cuda ]; then
  if [ $witness = 1 ]; then
    row 'nvidia-smi' SKIP 0 'the GPU is the witness (docs/witness.md)'
  else
    nvidia-smi > "$out/nvidia-smi.log" 2>&1
  fi
  export GEMS_REQUIRE_CUDA=1
fi

# ---- the same tests on every device ------------------------------------------------------------
if [ -x "${suite:-}" ]; then
  if [ "$on" = cuda ]; then
    run 'kernels: f64, CPU, SIMT and GPU' 150 "$suite" --test-threads 8 ops:: simt::
    run 'golden references' 100 "$suite" --test-threads 8 golden --skip data:: --skip prepare::
  else
    run 'one kernel test per room' 60 "$suite" elementwise activations rows_gather dots_and_adam
  fi
else
  row 'kernel and golden tests' SKIP 0 'no test program: cargo build --release --test suite, or gpu-bundle.sh'
fi

# ---- a training run ----------------------------------------------------------------------------
make_world

run "train on $on" 60 bash -c "training first $on"
run "train on $on again" 60 bash -c "training second $on"
run 'two runs, equal bits' 10 bash -c 'set -e; a=$(weights $out/first); b=$(weights $out/second); [ "$a" = "$b" ]; echo "sha256 ${a:0:16}"'
run "train on $on, as graphs" 60 bash -c "GEMS_GRAPHS=on training graphs $on"
run 'as graphs, equal bits' 10 bash -c 'set -e; a=$(weights $out/first); b=$(weights $out/graphs); [ "$a" = "$b" ]; echo "sha256 ${a:0:16}"'
run 'train on the CPU' 60 bash -c 'training cpu cpu'
# bf16 against f32: a rounding of 2^-9 a product. The SIMT machine computes in f32; Adam makes its rounding grow to
# 2e-4 in eight steps (measured).
most=2e-2
[ "$on" = cuda ] || most=1e-3
run "losses of $on and CPU" 10 bash -c "losses $out/first $out/cpu $most"

# ---- two ranks on one card ----------------------------------------------------------------------
# NCCL takes two ranks on one GPU if they seem to be on two machines; what passes between them goes through sockets then.
# two_ranks NAME ARG..: training by both.
two_ranks() {
  export NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 NCCL_IB_DISABLE=1 NCCL_SOCKET_IFNAME=lo CUDA_VISIBLE_DEVICES=0
  export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500
  local code=0 second
  rm -rf "${out:?}/$1"
  as_rank() { RANK=$1 LOCAL_RANK=$1 NCCL_HOSTID=machine$1 bash -c 'training "$@"' _ "$2" cuda --set train.shards=2 "${@:3}"; }
  as_rank 1 "$@" > "$out/second-rank.log" 2>&1 &
  second=$!
  as_rank 0 "$@" || code=$?
  wait $second || code=$?
  return $code
}
same_ranks() { local a b; a=$(weights "$out/leaves") && b=$(weights "$out/$1") && [ "$a" = "$b" ] && echo "sha256 ${a:0:16}"; }
export -f two_ranks same_ranks
if [ $witness = 1 ]; then
  row 'two ranks through NCCL' SKIP 0 'scripts/witness.sh runs them'
elif [ "$on" = cuda ] && grep -Eq '^PASS +NCCL +[0-9]' "$out/doctor.log"; then
  run 'one process, two leaves' 60 bash -c 'training leaves cuda --set train.shards=2'
  run 'two ranks through NCCL' 90 bash -c 'two_ranks ranks'
  run 'two ranks, equal bits' 10 bash -c 'same_ranks ranks'
  run 'two ranks, sums within the backward pass' 90 bash -c 'two_ranks within --set distributed.overlap=true'
  run 'the same, equal bits' 10 bash -c 'same_ranks within'
else
  row 'two ranks through NCCL' SKIP 0 'needs a GPU and NCCL (doctor says whether it is there)'
fi

# ---- the sanitizer -----------------------------------------------------------------------------
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
if [ $witness = 1 ]; then
  row 'compute-sanitizer' SKIP 0 'looks at machine code on a GPU; the witness makes the same checks on PTX'
elif [ "$on" = cuda ] && [ -n "$sanitizer" ] && [ -x "${suite:-}" ]; then
  for tool in memcheck racecheck initcheck synccheck; do
    # racecheck does not follow a ring of stages that is handed on by mbarriers, and reports it; the SIMT machine does.
    without=()
    [ "$tool" != racecheck ] || without=(--kernel-name-exclude kernel_substring=matmul_sm90a)
    run "compute-sanitizer $tool" 40 "$sanitizer" --tool "$tool" "${without[@]}" --error-exitcode 9 \
      "$engine" profile --model "$GEMS_GOLDEN_DIR/models/qwen2_bias" --data "$world" --device cuda --steps 1 \
      --warmup 0 --set train.batch=4 --set gems.rank=8 --set 'data.item_token=<new_{}>'
  done
else
  row 'compute-sanitizer' SKIP 0 "needs a GPU and compute-sanitizer (CUDA toolkit)"
fi

# ---- the launches of a real shape ----------------------------------------------------------------
run 'a step of t5-base, null device' 60 "$engine" profile --shape t5-base --tokens 1024 --device null --steps 1 --json
if [ $witness = 1 ]; then
  row 'a step of t5-base on the GPU' SKIP 0 'needs the speed of a GPU; this is the witness (docs/witness.md)'
elif [ "$on" = cuda ]; then
  run 'a step of t5-base on the GPU' 60 "$engine" profile --shape t5-base --tokens 4096 --device cuda --steps 2 --json
fi

echo
if [ $witness = 1 ]; then
  echo "$(elapsed) s; $failed failed, on the witness: PTX was executed, no machine code and no GPU. Logs and table: $out"
elif [ "$on" = cuda ]; then
  echo "$(elapsed) s; $failed failed. Logs and table: $out"
else
  echo "$(elapsed) s; $failed failed, up to the device boundary: no GPU was used."
  echo "Not checked: kernels on a GPU, compute-sanitizer, bits and losses of a GPU. \`gems-engine doctor\` says what is missing."
fi
[ "$failed" -eq 0 ]
