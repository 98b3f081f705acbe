#!/usr/bin/env bash
# How fast is it on this GPU? Steps, refreshes and memory of known models' shapes beside PyTorch peers, in turn in one
# run; then every operation at those shapes against its floor and cuBLASLt. At most 8 minutes, no Rust needed.
#
#   scripts/gpu-bench.sh [--out DIR] [--limit SECONDS] [--device cuda|null] [--shapes A,B] [--tokens N] [--rank R]
#
# Peers need a python3 with torch, transformers and peft ($PYTHON); without it they are left out. Without a GPU it
# goes as far as the device (launches counted by the null device) and says what was not measured. Results are
# written as they come: table.txt, table.tsv, one JSON a measurement, ops.jsonl.
set -uo pipefail
out=gpu-bench limit=480 device='' failed=0 tokens=8192 rank=16 steps=5
shapes=t5-base,qwen2.5-0.5b,qwen2.5-1.5b,qwen2.5-7b,llama-3.1-8b
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 ;;
    --limit) limit=$2 ;;
    --device) device=$2 ;;
    --shapes) shapes=$2 ;;
    --tokens) tokens=$2 ;;
    --rank) rank=$2 ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift 2
done
mkdir -p "$out" && out=$(cd "$out" && pwd) && rm -f "$out"/table.* "$out"/ops*.jsonl
. "$(dirname "$0")/gpu-common.sh"
find_device
on=$device
[ "$device" != none ] || on=null
python=${PYTHON:-python3}
beside=1
"$python" -c 'import torch, transformers, peft' 2> "$out/python.log" || beside=0
[ "$on" = cuda ] && [ $witness = 0 ] || beside=0
if [ $witness = 1 ]; then
  for shape in ${shapes//,/ }; do
    row "$shape" SKIP 0 'needs the speed of a GPU; this is the witness (docs/witness.md)'
  done
  shapes=qwen2_bias steps=1 rank=8
  make_world
fi
# subject SHAPE: random weights of a known shape; on the witness, a golden model.
subject() {
  if [ $witness = 1 ]; then
    echo "--model $GEMS_GOLDEN_DIR/models/$1 --data $world --set train.batch=4 --set data.item_token=<new_{}> --warmup 0"
  else
    echo "--shape $1 --tokens $tokens"
  fi
}

state() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.used \
    --format=csv,noheader 2>/dev/null || echo 'no nvidia-smi'
}
echo "$(date -u +%Y-%m-%dT%H:%MZ)  $(state)" | tee "$out/machine.txt"
[ ! -f "$root/VERSION" ] || cat "$root/VERSION" >> "$out/machine.txt"

# measure NAME SECONDS FILE COMMAND...: a row with what the one JSON object of FILE says.
measure() {
  local name=$1 most=$(($2 * slower)) file=$out/$3 from code=0
  shift 3
  [ "$most" -le "$(left)" ] || most=$(left)
  if [ "$most" -lt 5 ]; then
    row "$name" TIME 0 "the $limit s of this run are over"
    return
  fi
  from=$(date +%s)
  timeout "$most" "$@" > "$file" 2> "$file.log" || code=$?
  local took=$(($(date +%s) - from))
  if [ $code -eq 124 ]; then
    row "$name" TIME "$took" "stopped after $most s"
  elif [ $code -ne 0 ]; then
    row "$name" FAIL "$took" "exit $code: $(tail -1 "$file.log" | cut -c1-90)"
  else
    tail -1 "$file" > "$file.last"
    row "$name" PASS "$took" "$(describe "$file.last")"
  fi
}
describe() {
  [ $witness = 0 ] || { echo "ran; $(field "$1" peak_memory_bytes | awk '{ printf "%.2f", $1 / 2 ^ 30 }') GiB at most"; return; }
  local gib
  gib=$(field "$1" peak_memory_bytes | awk '{ printf "%.2f", $1 / 2 ^ 30 }')
  if [ "$on" = null ]; then
    printf 'host %.3f ms a step, %.0f launches, %s GiB planned; device: not measured\n' \
      "$(field "$1" step_ms)" "$(field "$1" launches)" "$gib"
  else
    printf 'step %.2f ms, %.0f tokens/s, refresh %.1f ms, peak %s GiB\n' \
      "$(field "$1" step_ms)" "$(field "$1" tokens_per_s)" "$(field "$1" refresh_ms)" "$gib"
  fi
}
engine_step() { # SHAPE METHOD ROUND
  measure "$1 $2 engine" 90 "$1.$2.$3.json" "$engine" profile $(subject "$1") --device "$on" \
    --steps $steps --set "gems.method=$2" --set "gems.rank=$rank" --set train.activation_checkpointing="$4" --json
}
graph_step() { # SHAPE CHECKPOINTING: the same step, replayed as CUDA graphs
  GEMS_GRAPHS=on measure "$1 gems engine, graphs" 60 "$1.gems-graphs.1.json" "$engine" profile $(subject "$1") \
    --device "$on" --steps $steps --no-refresh --set gems.rank="$rank" \
    --set train.activation_checkpointing="$2" --json
}
# peers SHAPE ROUND SECONDS A,B [OPTION..]: PyTorch contenders, one after the other in one process; a row each.
peers() {
  local shape=$1 round=$2 most=$3 list=$4 file=$out/$1.peers.$2.$4.jsonl from code=0 which line
  shift 4
  [ "$most" -le "$(left)" ] || most=$(left)
  if [ "$most" -lt 15 ]; then
    row "$shape $list peers" TIME 0 "the $limit s of this run are over"
    return
  fi
  from=$(date +%s)
  timeout "$most" "$python" "$peer" --which "$list" --shape "$shape" --tokens "$tokens" --rank "$rank" --device cuda "$@" \
    > "$file" 2> "$file.log" || code=$?
  for which in ${list//,/ }; do
    if line=$(grep "\"peer\": \"$which\"" "$file"); then
      echo "$line" > "$out/$shape.peer-$which.$round.json.last"
      row "$shape $which peer" PASS $(($(date +%s) - from)) "$(describe "$out/$shape.peer-$which.$round.json.last")"
    elif [ $code -eq 124 ]; then
      row "$shape $which peer" TIME "$most" "stopped with the others of its process after $most s"
    else
      row "$shape $which peer" FAIL $(($(date +%s) - from)) "exit $code: $(tail -1 "$file.log" | cut -c1-90)"
    fi
  done
}

# ---- steps, engine and peers in turn; the small shapes twice --------------------------------------
for shape in ${shapes//,/ }; do
  large=false rounds='1 2'
  case $shape in *7b | *8b) large=true rounds=1 ;; esac
  [ $witness = 0 ] || rounds=1
  for round in $rounds; do
    engine_step "$shape" gems "$round" "$large"
    [ "$round" != 1 ] || graph_step "$shape" "$large"
    if [ $beside = 1 ]; then
      peers "$shape" "$round" 90 two-pass,lora
      # A dense SVD a layer takes minutes: these two without a refresh, from random bases.
      [ "$round" != 1 ] || [ $large = true ] || peers "$shape" 1 60 three-pass,galore --no-refresh
      [ "$round" != 1 ] || [ $large = true ] || peers "$shape" 1 90 galore-lowrank,lora-compiled
    fi
    [ "$round" != 1 ] || engine_step "$shape" lora "$round" "$large"
    [ "$on" != null ] || break
  done
done
[ $beside = 1 ] || row 'PyTorch peers' SKIP 0 "need a GPU and $python with torch, transformers, peft"

# ---- ranking test queries -------------------------------------------------------------------------
if [ $beside = 1 ] && [ -x "$ranker" ]; then
  run 'ranking of queries, t5-base' 60 "$python" "$root/benches/peers/evaluate.py" --device cuda --shape t5-base --rounds 3 \
    --queries 512 --published-queries 16 --engine "$ranker" --engine-cli "$engine" --work "$out/ranking" || true
fi

# ---- every operation ------------------------------------------------------------------------------
if [ -x "${ops:-}" ]; then
  seconds=$(($(left) - 25))
  [ "$on" = cuda ] || seconds=10
  [ "$seconds" -lt 90 ] || seconds=90
  sizes=2048,8192
  [ $witness = 0 ] || { shapes=t5-base sizes=32; }
  run 'operations at these shapes' $((seconds + 20)) "$ops" --device "$on" --shapes "$shapes" --tokens "$sizes" \
    --seconds "$seconds" --out "$out/ops.jsonl"
  if [ "$on" = cuda ] && grep -q '"name":"cuBLASLt"[^}]*"found":null' "$out/doctor.json"; then
    row 'plain products by cuBLASLt' SKIP 0 'the library is not there (doctor prints the names)'
  elif [ "$on" = cuda ]; then
    GEMS_CUBLASLT=on run 'plain products by cuBLASLt' 40 "$ops" --device cuda --shapes "$shapes" \
      --tokens 2048,8192 --only matmul --seconds 25 --out "$out/ops-cublaslt.jsonl"
  fi
else
  row 'operations' SKIP 0 'no bench program: cargo build --release --bench ops, or gpu-bundle.sh'
fi

# ---- ratios ---------------------------------------------------------------------------------------
ratio() { # TEXT NUMERATOR DENOMINATOR
  [ -s "$out/$2.last" ] && [ -s "$out/$3.last" ] || return
  local value
  value=$(awk -v a="$(field "$out/$2.last" step_ms)" -v b="$(field "$out/$3.last" step_ms)" 'BEGIN { printf "%.2f", a / b }')
  row "$1" INFO 0 "${value}x"
}
if [ "$on" = cuda ]; then
  for shape in ${shapes//,/ }; do
    for which in three-pass two-pass lora lora-compiled galore galore-lowrank; do
      own=gems
      case $which in lora*) own=lora ;; esac
      ratio "$shape $which / engine $own" "$shape.peer-$which.1.json" "$shape.$own.1.json"
    done
    ratio "$shape engine launch by launch / graphs" "$shape.gems.1.json" "$shape.gems-graphs.1.json"
    ratio "$shape engine gems / engine lora" "$shape.gems.1.json" "$shape.lora.1.json"
  done
  if [ -s "$out/ops.jsonl" ] && [ -s "$out/ops-cublaslt.jsonl" ]; then
    key='s/.*"shape":"\([^"]*\)","case":"\(matmul[^"]*\)","us":\([0-9.]*\).*/\1 \2\t\3/p'
    join -t "$(printf '\t')" <(sed -n "$key" "$out/ops-cublaslt.jsonl" | sort) \
      <(sed -n "$key" "$out/ops.jsonl" | sort) |
      awk -F '\t' '{ printf "%-60s cuBLASLt / own %.2f\n", $1, $2 / $3 }' | tee "$out/cublaslt.txt"
  fi
fi
echo "$(date -u +%Y-%m-%dT%H:%MZ)  $(state)" >> "$out/machine.txt"
echo
if [ $witness = 1 ]; then
  echo "$(elapsed) s; $failed failed, on the witness: everything ran, and no time means anything. Table: $out"
elif [ "$on" = cuda ]; then
  echo "$(elapsed) s; $failed failed. Figures: $out"
else
  echo "$(elapsed) s; $failed failed, up to the device boundary: no GPU was used, nothing was measured on one."
  echo "Not measured: steps, refreshes, memory, operations and peers on a GPU. \`gems-engine doctor\` says what is missing."
fi
[ "$failed" -eq 0 ]
