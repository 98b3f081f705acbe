#!/usr/bin/env bash
# Is everything right on this GPU? Every kernel test and golden test on cuda, compute-sanitizer, determinism, and a
# training run against the CPU's; one table, at most 8 minutes, no Rust needed (see gpu-bundle.sh).
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
run 'doctor' 20 "$engine" doctor --out "$out"
if [ "$on" = cuda ]; then
  nvidia-smi > "$out/nvidia-smi.log" 2>&1
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
world=$out/world
mkdir -p "$world"
awk -v dir="$world" 'BEGIN {
  split("red blue green oak", word, " ");
  for (i = 0; i < 12; i++)
    printf "{\"item\":\"i%d\",\"text\":\"%s desk %d\"}\n", i, word[i % 4 + 1], i > (dir "/items.jsonl");
  for (k = 0; k < 60; k++) {
    a = (k * 5) % 12; b = (k * 7 + 1) % 12; c = (k * 3) % 12;
    query = k % 3 ? "" : sprintf("\"query\":\"%s desk\",", word[c % 4 + 1]);
    line = sprintf("{\"task\":\"%s\",\"history\":[\"i%d\",\"i%d\"],%s\"target\":[\"i%d\"]}", k % 3 ? "rec" : "search", a, b, query, c);
    print line > (dir "/train.jsonl");
    if (k < 12) { print line > (dir "/valid.jsonl"); print line > (dir "/test.jsonl") }
    printf "the %s desk number %d stands by a green kettle\n", word[k % 4 + 1], k > (dir "/general.txt");
  }
}'

# training NAME DEVICE
training() {
  local settings=(train.evaluate_before=false train.evaluate_after=false train.validate_every=0 train.export=false
    train.batch=4 train.warmup_steps=2 gems.rank=8 gems.refresh_every=3 gems.refresh_window=1 checkpoint.keep=1
    'data.item_token=<new_{}>') args=()
  for setting in "${settings[@]}"; do args+=(--set "$setting"); done
  rm -rf "$out/$1"
  "$engine" train --json --model "$GEMS_GOLDEN_DIR/models/qwen2_bias" --data "$world" --out "$out/$1" \
    --device "$2" --steps 6 "${args[@]}"
}
# The tensors that training left, as one checksum.
weights() { ls "$1"/checkpoints/*/weights.safetensors > /dev/null && cat "$1"/checkpoints/*/*.safetensors | sha256sum; }
# Largest relative difference of the losses of two runs, and whether it is below a limit.
losses() {
  sed -n 's/.*"loss":\([0-9.eE+-]*\).*/\1/p' "$1/metrics.jsonl" > "$1/losses"
  sed -n 's/.*"loss":\([0-9.eE+-]*\).*/\1/p' "$2/metrics.jsonl" > "$2/losses"
  paste "$1/losses" "$2/losses" | awk -v most="$3" '
    { d = ($1 - $2) / $2; if (d < 0) d = -d; if (d > worst) worst = d; n++ }
    END { printf "%d steps, losses differ by %.2e at most (limit %s)\n", n, worst, most; exit !(n >= 6 && worst <= most) }'
}
export -f training weights losses
export engine out world

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

# ---- the sanitizer -----------------------------------------------------------------------------
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1)
if [ "$on" = cuda ] && [ -n "$sanitizer" ] && [ -x "${suite:-}" ]; then
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
if [ "$on" = cuda ]; then
  run 'a step of t5-base on the GPU' 60 "$engine" profile --shape t5-base --tokens 4096 --device cuda --steps 2 --json
fi

echo
if [ "$on" = cuda ]; then
  echo "$(elapsed) s; $failed failed. Logs and table: $out"
else
  echo "$(elapsed) s; $failed failed, up to the device boundary: no GPU was used."
  echo "Not checked: kernels on a GPU, compute-sanitizer, bits and losses of a GPU. \`gems-engine doctor\` says what is missing."
fi
[ "$failed" -eq 0 ]
