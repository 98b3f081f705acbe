#!/usr/bin/env bash
# Coverage-guided fuzzing of every reader of untrusted bytes: scripts/fuzz.sh [--seconds N] [--keep DIRECTORY] [TARGET ...]
#
# libFuzzer on any toolchain. The engine is built with coverage counters, what it depends on without: what is guided is how the
# engine uses them. No input may take more than 1 GiB of memory, 512 MiB at once, or 10 seconds. Inputs that are found are
# kept below --keep, and serve the next call.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=(weights index architecture settings tokenizer template rows gzip zstd records csv jsonl literals parquet moment
  basis checkpoint ask metrics result)
seconds=60
keep=
while [ $# -gt 0 ]; do
  case $1 in
  --seconds) seconds=$2; shift 2 ;;
  --keep) keep=$2; shift 2 ;;
  --list) printf '%s\n' "${targets[@]}"; exit ;;
  *) break ;;
  esac
done
if [ $# -gt 0 ]; then targets=("$@"); fi

command -v c++ >/dev/null || { echo 'SKIP  no fuzzing: libFuzzer needs a C++ compiler'; exit; }
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(pwd)/target}
# GEMS_PROFILE=release shares what is built of dependencies with the tests.
profile=${GEMS_PROFILE:-dev}
program=$CARGO_TARGET_DIR/${profile/dev/debug}/gems-fuzz
RUSTC_WRAPPER=$(pwd)/fuzz/with-coverage.sh cargo build --locked --quiet --profile "$profile" --manifest-path fuzz/Cargo.toml

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
place=/dev/shm
[ -w $place ] || place=$work
found=0
for target in "${targets[@]}"; do
  [ -d "fuzz/corpus/$target" ] || { echo "fuzz: there is no target $target; --list names them" >&2; exit 2; }
  new=${keep:-$work}/$target
  log=$work/$target.log
  mkdir -p "$new"
  temporary=$(mktemp -d "$place/gems-fuzz-XXXXXX")
  if GEMS_FUZZ=$target TMPDIR=$temporary "$program" "$new" "fuzz/corpus/$target" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=16384 \
    -artifact_prefix="$CARGO_TARGET_DIR/found-$target-" -print_final_stats=1 >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    most=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    printf '%-13s %9s executions, at most %s MiB\n' "$target" "$runs" "$most"
  else
    found=1
    printf '%-13s FOUND\n' "$target"
    grep -E 'panicked|ERROR|SUMMARY|Test unit written' "$log" | head -5 || tail -5 "$log"
  fi
  rm -rf "$temporary"
done
exit $found
