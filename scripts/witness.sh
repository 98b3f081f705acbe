#!/usr/bin/env bash
# The engine on the witness: a stand-in for the CUDA driver that executes the compiler's own PTX on this machine's CPU and
# checks every call and every access (docs/witness.md). Kernel tests, golden tests, and whole runs of train, evaluate,
# rank and export with --device cuda, as compute capability 8.0 and 9.0; one table, and an exit of 1 if anything failed.
#
#   scripts/witness.sh [--short] [--out DIR]
#
# --short is what CI runs: under 5 minutes on two cores. Programs are those of `cargo build --release`, unchanged: the
# witness takes their machine code and runs the PTX that nvcc makes of the same kernels, which this script compiles into
# target/witness/ptx. GEMS_ENGINE and GEMS_SUITE name
# programs that are built already. Needs nvcc (`just cuda-toolchain`), no GPU.
set -uo pipefail
short=0 out='' failed=0 limit=14400
while [ $# -gt 0 ]; do
  case $1 in
    --short) short=1 ;;
    --out) out=$2 && shift ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done
cd "$(dirname "$0")/.." || exit 1
target=${CARGO_TARGET_DIR:-$PWD/target}
out=${out:-$target/witness/results}
mkdir -p "$out" "$target/witness/lib" "$target/witness/ptx" && out=$(cd "$out" && pwd) && rm -f "$out"/table.* "$out"/*.faults

# ---- the programs, the witness, the PTX ---------------------------------------------------------
set -e
nvcc=${NVCC:-$([ -x .cuda/bin/nvcc ] && echo .cuda/bin/nvcc || command -v nvcc || true)}
[ -n "$nvcc" ] || { echo 'witness: no CUDA compiler; `just cuda-toolchain` brings one' >&2; exit 1; }
if [ -n "${GEMS_ENGINE:-}" ] && [ -n "${GEMS_SUITE:-}" ]; then # programs that are there
  cargo build --release --locked -p gems-witness
else
  cargo build --release --locked --workspace --lib --bins --test suite
fi
ln -sf ../../release/libgems_witness.so "$target/witness/lib/libcuda.so"
ln -sf ../../release/libgems_witness.so "$target/witness/lib/libcuda.so.1"
ln -sf ../../release/libgems_witness.so "$target/witness/lib/libnccl.so.2"

# compile KERNEL ARCHITECTURE: its PTX, unless it was made of the same sources by the same command.
compile() {
  local made=$target/witness/ptx/$1.ptx_$2 key
  local command=("$nvcc" -ptx -lineinfo -std=c++17 -O3 "-arch=compute_$2" "kernels/$1.cu")
  key=$({ "$nvcc" --version; echo "${command[@]}"; cat "kernels/$1.cu" kernels/*.cuh kernels/*.h; } | sha256sum)
  [ -s "$made" ] && [ "$key" = "$(cat "$made.key" 2>/dev/null)" ] && return
  "${command[@]}" -o "$made" && echo "$key" > "$made.key"
}
export -f compile
export nvcc target
for architecture in 80 90a; do
  for file in kernels/*.cu; do
    case $file in
      *_sm*) [[ $file == *_sm$architecture.cu ]] || continue ;;
    esac
    echo "$(basename "$file" .cu) $architecture"
  done
done | xargs -P "$(nproc)" -L 1 bash -c 'compile "$0" "$1"'
set +e

. scripts/gpu-common.sh
engine=${GEMS_ENGINE:-$target/release/gems-engine}
suite=${GEMS_SUITE:-$(ls -t "$target"/release/deps/suite-* | grep -v '\.[a-z]*$' | head -1)}
if ! "$engine" doctor --json --out "$out" 2>/dev/null | grep -q '"sm_80".*"sm_90a"\|"sm_90a".*"sm_80"'; then
  echo 'witness: the programs have no kernels for sm_80 and sm_90a: build them with GEMS_CUDA=require' >&2
  exit 1
fi
make_world

# On the witness from here on.
export LD_LIBRARY_PATH=$target/witness/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export WITNESS_PTX=$target/witness/ptx GEMS_REQUIRE_CUDA=1

# witnessed NAME SECONDS COMMAND...: a row that also fails when the witness found something.
witnessed() {
  local name=$1 most=$2
  shift 2
  export WITNESS_LOG=$out/$(echo "$name" | tr -c 'A-Za-z0-9.\n' '-').faults
  run "$name" "$most" bash -c '
    "$@"; code=$?
    if [ -s "$WITNESS_LOG" ]; then
      echo "error: $(wc -l < "$WITNESS_LOG") found, first: $(head -1 "$WITNESS_LOG")"
      exit 97
    fi
    exit $code' _ "$@"
}
# same A B: two runs left equal bits.
same() { local a b; a=$(weights "$out/$1") && b=$(weights "$out/$2") && [ "$a" = "$b" ] && echo "sha256 ${a:0:16}"; }
# answers RUN DEVICE..: what a run recommends, best first.
answers() { "$engine" rank --json --run "$out/$1" --history i1,i3 --query 'red desk' --top 8 --device "${@:2}" 2>/dev/null | grep -o '"item":"[^"]*"' | tr '\n' ' '; }
# same_answers RUN: those on the witness are those of the SIMT machine in the same type.
same_answers() {
  local a b
  a=$(answers "$1" cuda) && b=$(answers "$1" simt --set precision=bf16) && [ -n "$a" ] && [ "$a" = "$b" ] && echo "$a"
}
# same_metrics RUN: perplexity on general text on the witness and on the CPU.
same_metrics() {
  local a b
  perplexity() { "$engine" evaluate --json --run "$out/$1" --device "$2" 2>/dev/null | tail -1 | sed 's/.*"perplexity":\([0-9.]*\).*/\1/'; }
  a=$(perplexity "$1" cuda) && b=$(perplexity "$1" cpu) &&
    awk -v a="$a" -v b="$b" 'BEGIN { d = (a - b) / b; if (d < 0) d = -d; printf "perplexity %s, on the CPU %s\n", a, b; exit !(b > 0 && d < 5e-3) }'
}
# fails FAULT WORDS: training meets the fault, says so and ends with an error, neither a panic nor a hang.
fails() {
  local code=0
  WITNESS_FAIL=$1 WITNESS_LOG='' timeout 120 bash -c 'training faulty cuda' > "$out/faulty.log" 2>&1 || code=$?
  grep -a '^error' "$out/faulty.log" | head -1
  [ "$code" -gt 0 ] && [ "$code" -lt 100 ] && grep -qa "^error.*$2" "$out/faulty.log" && ! grep -qa panicked "$out/faulty.log"
}
# ranks NAME ARG..: training by two ranks as torchrun starts them; the first one's words. NCCL moves what passes between them.
ranks() {
  local rank code=0 first second
  rm -rf "$out/$1" "$out/meeting" && mkdir "$out/meeting"
  as_rank() {
    RANK=$1 WORLD_SIZE=2 LOCAL_RANK=$1 CUDA_VISIBLE_DEVICES=$1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
      WITNESS_NCCL=$out/meeting WITNESS_THREADS=1 exec bash -c 'training "$@"' _ "${@:2}"
  }
  as_rank 1 "$1" cuda --set train.shards=2 "${@:2}" > "$out/second.log" 2>&1 & second=$!
  as_rank 0 "$1" cuda --set train.shards=2 "${@:2}" & first=$!
  if [ -n "${KILLED:-}" ]; then # the second one, when it is in the middle
    until [ "$(cat "$out/$1/metrics.jsonl" 2>/dev/null | wc -l)" -ge 2 ]; do sleep 0.2; done
    pkill -KILL -P "$second"; kill -KILL "$second"
  fi
  wait "$first" || code=$?
  wait "$second" 2>/dev/null || code=$((code > 0 ? code : $?))
  return $code
}
# under_mpi NAME ARG..: the same two ranks as mpirun starts them. What is on GPUs goes through NCCL, everything else through MPI.
under_mpi() {
  rm -rf "$out/$1" "$out/meeting" && mkdir "$out/meeting"
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 WITNESS_NCCL=$out/meeting WITNESS_THREADS=1 \
    mpirun --oversubscribe --bind-to none -n 2 bash -c '
      RANK=$OMPI_COMM_WORLD_RANK CUDA_VISIBLE_DEVICES=$RANK training "$@"' _ "$1" cuda --set train.shards=2 "${@:2}" &&
    ls "$out/meeting" | grep -q .
}
# crossing: what a step of two ranks without a refresh copies between host and device is little beside what they exchange.
crossing() {
  local six twelve exchanged step
  bytes() { STEPS=$1 WITNESS_REPORT=1 ranks "crossing$1" $light --set gems.refresh_every=50 --set gems.rank=16 2>&1 | sed -n 's/^witness: \([0-9]*\) bytes copied to the device, \([0-9]*\) from it/\1 + \2/p' | tail -1; }
  six=$(bytes 6) && twelve=$(bytes 12) && [ -n "$six" ] && [ -n "$twelve" ] || return 1
  step=$((($twelve - ($six)) / 6))
  exchanged=$(sed -n 's/.*"exchange_bytes":\([0-9]*\).*/\1/p' "$out/crossing12/metrics.jsonl" | sort -n | head -1)
  echo "a step: $step bytes between host and device, $exchanged between ranks"
  [ "$step" -lt $((exchanged / 2)) ]
}
# left_alone: the first of two ranks names the second, which was killed, and ends.
left_alone() {
  local code=0
  KILLED=1 WITNESS_LOG='' timeout 300 bash -c 'ranks alone --set distributed.timeout_s=10 $light' > "$out/alone.log" 2>&1 || code=$?
  grep -a '^note.*rank 1' "$out/alone.log"
  [ "$code" -gt 0 ] && [ "$code" -lt 124 ] && grep -qa '^error.*not all of 2 ranks came' "$out/alone.log" &&
    grep -qa '^note: rank 1 .*left no word' "$out/alone.log"
}
export -f same answers same_answers same_metrics fails ranks under_mpi crossing left_alone

# ---- the same tests as on a GPU, the same runs --------------------------------------------------
for capability in 80 90; do
  export WITNESS_CAPABILITY=$capability
  as="as ${capability:0:1}.${capability:1}"
  witnessed "kernels, $as" 600 "$suite" --test-threads 3 ops:: simt::
  if [ $short = 0 ]; then
    witnessed "golden references, $as" 1200 "$suite" --test-threads 3 golden --skip data:: --skip prepare::
  fi
  witnessed "train, $as" 300 bash -c "training plain$capability cuda"
  witnessed "train as graphs, $as" 300 bash -c "GEMS_GRAPHS=on training graphs$capability cuda"
  run "as graphs, equal bits, $as" 10 bash -c "same plain$capability graphs$capability"
done
run 'train on the CPU' 120 bash -c 'training cpu cpu'
run 'train on the SIMT machine, bf16' 240 bash -c 'training simt simt --set precision=bf16'
# bf16 against f32: a rounding of 2^-9 a product; against the same kernels as C++: the order of sums only.
run 'losses as 8.0 and on the CPU' 10 bash -c "losses $out/plain80 $out/cpu 2e-2"
run 'losses as 9.0 and on the CPU' 10 bash -c "losses $out/plain90 $out/cpu 2e-2"
run 'losses as 8.0 and on the SIMT machine' 10 bash -c "losses $out/plain80 $out/simt 2e-3"
witnessed 'evaluate, and on the CPU' 120 bash -c 'same_metrics plain80'
witnessed 'rank, and on the SIMT machine' 120 bash -c 'same_answers plain90'
witnessed 'export, read back' 120 bash -c 'rm -rf "$out/exported" && "$engine" export --run "$out/plain90" --out "$out/exported" --device cuda'

# ---- hostile orders ---------------------------------------------------
export WITNESS_CAPABILITY=90
# As little memory as it can do with: what was freed comes back at a wait, not sooner.
witnessed 'train, random order, 5 MiB' 300 bash -c 'WITNESS_SEED=7 WITNESS_MEMORY_MIB=5 training random cuda'
run 'random order, 5 MiB, equal bits' 10 bash -c 'same plain90 random'
# ---- ranks, as torchrun starts them ---------------------------------------------------------------
light='--set null_space.side=none --set null_space.item_rows=0.0'
export light whole=$light
[ $short = 1 ] || whole=''
witnessed 'one process, two leaves' 300 bash -c 'training leaves cuda --set train.shards=2 $whole'
witnessed 'two ranks through NCCL' 400 bash -c 'ranks ranks $whole'
run 'two ranks, equal bits' 10 bash -c 'same leaves ranks'
witnessed 'two ranks, sums within the backward pass' 400 bash -c 'ranks within $whole --set distributed.overlap=true'
run 'sums within the backward pass, equal bits' 10 bash -c 'same leaves within'
run 'what crosses the bus' 800 bash -c crossing
if command -v mpirun > /dev/null && mpirun --version | grep -q 'Open MPI'; then
  witnessed 'two ranks through NCCL, under MPI' 400 bash -c 'under_mpi both $whole'
  run 'two ranks under MPI, equal bits' 10 bash -c 'same leaves both'
fi
run 'a rank that is killed' 310 bash -c left_alone

# ---- faults on request --------------------------------------------------------------------------
run 'a launch that fails' 130 bash -c 'fails launch:400:719 LAUNCH_FAILED'
run 'a device that is lost' 130 bash -c 'fails wait:4:214 "the GPU is lost"'
if [ $short = 1 ]; then
  witnessed 'races of some kernels, as 9.0' 240 env WITNESS_RACES=1 "$suite" --test-threads 3 \
    products_on_hopper adapted_linear ops::weight_grad ops::dots
else
  witnessed 'races, as 9.0' 3600 env WITNESS_RACES=1 "$suite" --test-threads 2 ops::
  witnessed 'races in a random order, as 9.0' 3600 env WITNESS_RACES=1 WITNESS_SEED=3 "$suite" --test-threads 2 ops::
  witnessed 'train with races, as 9.0' 900 bash -c 'WITNESS_RACES=1 training races cuda'
  export WITNESS_CAPABILITY=80
  witnessed 'races, as 8.0' 3600 env WITNESS_RACES=1 "$suite" --test-threads 2 ops::
  witnessed 'train with races, as 8.0' 900 bash -c 'WITNESS_RACES=1 training races cuda'
  run 'an allocation that fails' 130 bash -c 'fails allocation:40:OUT_OF_MEMORY,allocation:41:OUT_OF_MEMORY "out of memory"'
  run 'an illegal address' 130 bash -c 'fails launch:900:700 ILLEGAL_ADDRESS'
fi

late=$(cut -f 2 "$out/table.tsv" | grep -c TIME)
echo
echo "$(elapsed) s; $failed failed, $late out of time. PTX was executed, no machine code. Logs and table: $out"
[ "$failed" -eq 0 ] && [ "$late" -eq 0 ]
