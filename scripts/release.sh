#!/usr/bin/env bash
# What a release consists of, in target/release-files: the wheel, an archive of the program, their SHA-256 sums.
#
#   scripts/release.sh [TARGET]    builds the wheel first (scripts/wheel.sh), which tries it
#   scripts/release.sh --pack      packs the wheel that is in target/wheels
#
# The archive holds the same program as the wheel, with completions, the notices and the documents.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

[ "${1:-}" = --pack ] || scripts/wheel.sh "$@"
wheel=$(ls "$target"/wheels/*.whl)
machine=$(basename "$wheel" .whl | sed 's/.*manylinux_[0-9]*_[0-9]*_//')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=gems-engine-$version-$machine-linux

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/$name
mkdir -p "$root/completions"
python3 -m zipfile --extract "$wheel" "$stage/wheel"
install -m 755 "$stage"/wheel/gems_engine-*.data/scripts/gems-engine "$root/gems-engine"
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE assets/LICENSE-wordnet assets/third-party-licences.txt "$root/"
cp -r docs "$root/docs"
# A program of another machine cannot be asked; the wheel has nothing that it could not print itself.
if [ "$machine" = "$(uname -m)" ]; then
  for shell in bash zsh fish; do "$root/gems-engine" completions $shell > "$root/completions/gems-engine.$shell"; done
fi

out=$target/release-files
mkdir -p "$out"
# The same bytes from the same program: names in order, no owner, one date.
date=$(git log -1 --format=%cI 2>/dev/null || date -u +%Y-%m-%dT00:00:00Z)
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner --mtime="$date" -c "$name" |
  gzip -9n > "$out/$name.tar.gz"
cp "$wheel" "$out/"
(cd "$out" && sha256sum -- *.whl *.tar.gz > SHA256SUMS && cat SHA256SUMS && du -h -- *.whl *.tar.gz)
