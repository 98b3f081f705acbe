#!/bin/sh
# Cargo's wrapper of rustc: counters of coverage for libFuzzer in the engine and in the targets. What they depend on has none.
rustc=$1
shift
case " $* " in
*" --crate-name gems_engine "* | *" --crate-name gems_fuzz "*)
  exec "$rustc" "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
  ;;
*) exec "$rustc" "$@" ;;
esac
