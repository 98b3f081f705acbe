#!/usr/bin/env python3
"""Makes the embedded demo's raw material: general text, tokenizer, catalogue and logs.

    world.py --wordnet DIR --model DIR --data DIR --pretrain DIR [--seed N]

DIR of --wordnet holds data.noun, data.verb, data.adj and data.adv of WordNet 3.0. Every random choice
comes from the seed: the same seed and the same version of `tokenizers` give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import catalogue
import general
import model
from logs import World
from tokenizers import Tokenizer
from wordnet import WordNet

USERS, VALID, TEST = 1500, 300, 600
# Held-out synsets, by use: to measure forgetting on definitions, on sentences, to validate pretraining.
DEFINITIONS, SENTENCES, VALIDATION = 900, 1600, 400
CALIBRATION = 1500  # lines of training text for the null space


def main() -> None:
    options = parse()
    net = WordNet(options.wordnet)
    items, kin = catalogue.choose(net, options.seed)
    held = general.held_out_synsets(net, kin, DEFINITIONS + SENTENCES + VALIDATION, options.seed)
    lines = general.training_lines(net, {i.synset.key for i in items}, kin, set(held), options.seed)
    tokenizer = model.train_tokenizer(lines)
    model.write(options.model, tokenizer)

    unseen = [net.synsets[key] for key in held]
    known = set(lines)
    texts = {
        "general": list(dict.fromkeys(lines[:CALIBRATION])),
        "general-heldout": general.definitions(unseen[:DEFINITIONS]),
        "sentences": general.sentences(unseen[DEFINITIONS:DEFINITIONS + SENTENCES]),
        "validation": general.definitions(unseen[DEFINITIONS + SENTENCES:]),
    }
    for name in ("general-heldout", "sentences", "validation"):
        # WordNet repeats a few glosses and examples: what was learned cannot measure forgetting.
        texts[name] = [t for t in dict.fromkeys(texts[name]) if t not in known]

    catalogue_rows = [{"item": item.id, "text": item.title} for item in items]
    world = World(items, options.seed)
    write_rows(options.data / "items.jsonl", catalogue_rows)
    write_rows(options.data / "train.jsonl", world.training(USERS))
    write_rows(options.data / "valid.jsonl", world.requests("valid", VALID))
    write_rows(options.data / "test.jsonl", world.requests("test", TEST))
    write_rows(options.data / "test-knowledge.jsonl", world.knowledge(TEST))
    for name in ("general", "general-heldout", "sentences"):
        write_lines(options.data / f"{name}.txt", texts[name])

    write_rows(options.pretrain / "items.jsonl", catalogue_rows)
    write_rows(options.pretrain / "train.jsonl", [{"task": "text", "text": line} for line in lines])
    write_lines(options.pretrain / "general-heldout.txt", texts["validation"])
    summarise(net, items, {"pretraining": lines, **texts}, tokenizer)


def summarise(
    net: WordNet, items: list[catalogue.Item], texts: dict[str, list[str]], tokenizer: Tokenizer
) -> None:
    """What was made, for whoever runs this."""
    print(f"{len(net.synsets)} synsets")
    for name, documents in texts.items():
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(documents))
        print(f"{name} text: {len(documents)} lines, {tokens} tokens")
    seen, held = (sum(len(words) for words in side) / len(items)
                  for side in ([i.seen for i in items], [i.held for i in items]))
    asked = sum(len(i.held) >= 2 for i in items)
    print(f"{len(items)} items, with {seen:.1f} query words in logs and {held:.1f} held back on average")
    print(f"{asked} items can be asked for in test-knowledge")


def write_rows(path: Path, rows: list[dict]) -> None:
    write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("wordnet", "model", "data", "pretrain"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
