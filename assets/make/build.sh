#!/usr/bin/env bash
# Makes assets/demo again: text, tokenizer, catalogue and logs from WordNet, then the pretrained model.
#
#   assets/make/build.sh [WORKDIR]
#
# Needs python3, zstd, either dpkg and apt-get or WORDNET (a directory with WordNet 3.0's data.noun, ...),
# and GEMS_ENGINE (the binary; default: target/release/gems-engine, built if it is missing).
# WORKDIR (default: target/demo) keeps the pretraining text and run; a second call resumes the run.
set -euo pipefail
cd "$(dirname "$0")/../.."
make=$PWD/assets/make
demo=$PWD/assets/demo
work=${1:-target/demo}
mkdir -p "$work"
work=$(cd "$work" && pwd)

wordnet=${WORDNET:-$work/wordnet/usr/share/wordnet}
if [ ! -e "$wordnet/data.noun" ]; then
  (cd "$work" && apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet)
fi

python=$work/python/bin/python
if [ ! -x "$python" ]; then
  python3 -m venv "$work/python"
  "$python" -m pip install --quiet --requirement "$make/requirements.txt"
fi
"$python" "$make/world.py" --wordnet "$wordnet" --model "$work/model" --data "$work/data" --pretrain "$work/pretrain"

engine=${GEMS_ENGINE:-target/release/gems-engine}
[ -x "$engine" ] || cargo build --release --locked
if [ -e "$work/run/config.toml" ]; then
  "$engine" train --resume --out "$work/run"
else
  "$engine" train --model "$work/model" --data "$work/pretrain" --config "$make/pretrain.toml" --out "$work/run"
fi
"$engine" export --run "$work/run" --format merged --dtype bf16 --out "$work/exported"
mv "$work/exported/model.safetensors" "$work/model/"

# A file a line in the archive directory, so that the engine embeds and unpacks each by itself.
rm -rf "$demo"
mkdir -p "$demo/model" "$demo/data"
cp "$work/model/config.json" "$work/model/tokenizer_config.json" "$demo/model/"
for file in model/tokenizer.json model/model.safetensors; do
  zstd -q -19 -o "$demo/$file.zst" "$work/$file"
done
for file in "$work"/data/*; do
  zstd -q -19 -o "$demo/data/$(basename "$file").zst" "$file"
done
du -sh "$demo"
