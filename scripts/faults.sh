#!/usr/bin/env bash
# A campaign of faults against real runs: scripts/faults.sh [--short] [--seed N] [--only CASE] [--soak MINUTES] ... (docs/faults.md)
set -euo pipefail
cd "$(dirname "$0")/.."
case "$(uname -sm)" in
'Linux x86_64') ;;
*) echo 'faults: needs Linux on x86-64; left out'; exit ;;
esac
# GEMS_PROFILE=dev builds faster and runs slower.
profile=${GEMS_PROFILE:-release}
folder=${profile/dev/debug}
# As the tests are built, with the SIMT machine: after them there is nothing to build.
cargo build --locked --quiet --profile "$profile" --workspace --lib --bins --test suite
target=${CARGO_TARGET_DIR:-target}/$folder
exec "$target/gems-faults" --engine "$target/gems-engine" "$@"
