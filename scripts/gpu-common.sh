# What gpu-check.sh and gpu-bench.sh share: where the programs are, the device, the time box, the table.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$root/bin/gems-engine" ]; then # a bundle
  engine=$root/bin/gems-engine
  suite=$root/bin/deps/suite
  ops=$root/bin/ops
  peer=$root/peers/peer.py
  ranker=$root/bin/peers-ranker
else # a checkout
  engine=${GEMS_ENGINE:-$root/target/release/gems-engine}
  newest() { ls -t "$root"/target/release/deps/"$1"-* 2>/dev/null | grep -v '\.d$' | head -1; }
  suite=${GEMS_SUITE:-$(newest suite)}
  ops=${GEMS_OPS:-$(newest ops)}
  peer=$root/benches/peers/gpu/peer.py
  ranker=$root/target/release/examples/peers-ranker
fi
# The test program finds its data by these, wherever it was compiled.
export GEMS_GOLDEN_DIR=${GEMS_GOLDEN_DIR:-$root/tests/golden}
export CARGO_MANIFEST_DIR=$root

# Seconds are for a GPU; the witness needs more of them.
slower=1
started=$(date +%s)
elapsed() { echo $(($(date +%s) - started)); }
left() { echo $((limit - $(elapsed))); }

# Prints a row and appends it to the table: name, verdict, seconds, remark.
row() {
  printf '%-34s %-5s %5s s  %s\n' "$1" "$2" "$3" "$4" | tee -a "$out/table.txt"
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >> "$out/table.tsv"
  case $2 in FAIL) failed=$((failed + 1)) ;; esac
}

# What a log says in one line: the test program's result, or its last words.
remark() {
  local said
  said=$(grep -h '^test result' "$1" | tail -1 | sed 's/; finished.*//')
  [ -n "$said" ] || said=$(grep -v '^ *$' "$1" | tail -1)
  echo "$said" | cut -c1-90
}

# run NAME SECONDS COMMAND...: one row; the command's words go to a file of that name.
run() {
  local name=$1 most=$(($2 * slower)) from code=0
  shift 2
  local log=$out/$(echo "$name" | tr -c 'A-Za-z0-9.\n' '-').log
  [ "$most" -le "$(left)" ] || most=$(left)
  if [ "$most" -lt 2 ]; then
    row "$name" TIME 0 "the $limit s of this run are over"
    return 1
  fi
  from=$(date +%s)
  timeout "$most" "$@" > "$log" 2>&1 || code=$?
  local took=$(($(date +%s) - from))
  case $code in
    0) row "$name" PASS "$took" "$(remark "$log")" ;;
    124) row "$name" TIME "$took" "stopped after $most s; see $log" ;;
    *) row "$name" FAIL "$took" "exit $code: $(grep -m1 -iE 'error|panicked|FAILED' "$log" | cut -c1-80); see $log" ;;
  esac
  return $code
}

# A number in a one-line JSON file: field FILE KEY.
field() { sed -n 's/.*"'"$2"'": *\(-\{0,1\}[0-9.][0-9.eE+-]*\).*/\1/p' "$1" | head -1; }

# The device: cuda if there is a GPU, also one that does not open, so that this shows; otherwise what the script can do
# without one. `witness` says that the GPU is a stand-in that executes PTX on the CPU (docs/witness.md).
find_device() {
  "$engine" doctor --json --out "$out" > "$out/doctor.json" 2> "$out/doctor.log" || true
  witness=0
  if grep -q 'PTX witness' "$out/doctor.json"; then
    witness=1 slower=10 limit=$((limit * 10))
  fi
  if [ -n "${device:-}" ]; then
    return
  fi
  case $(grep -o '"auto":"[^"]*"' "$out/doctor.json" | head -1)$(nvidia-smi -L 2>/dev/null) in
    *cuda*|*'GPU '*) device=cuda ;;
    *) device=none ;;
  esac
}

# Twelve items and sixty records to train on, in $world.
make_world() {
  export world=$out/world
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
}

# training NAME DEVICE SETTINGS...
training() {
  local settings=(train.evaluate_before=false train.evaluate_after=false train.validate_every=0 train.export=false
    train.batch=4 train.warmup_steps=2 gems.rank=8 gems.refresh_every=3 gems.refresh_window=1 checkpoint.keep=1
    'data.item_token=<new_{}>') args=()
  for setting in "${settings[@]}"; do args+=(--set "$setting"); done
  [ -n "${RANK:-}" ] || rm -rf "${out:?}/$1" # of several ranks none may remove what another one writes
  "$engine" train --json --model "$GEMS_GOLDEN_DIR/models/qwen2_bias" --data "$world" --out "$out/$1" \
    --device "$2" --steps "${STEPS:-6}" "${args[@]}" "${@:3}"
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
export engine out
