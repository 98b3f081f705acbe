#!/usr/bin/env python3
"""Do exported models answer as the engine does, when they are asked as their cards say?

    benches/peers/check_cards.py ENGINE MODEL... [--chat] [--identity NAME,..]

With each base model (a directory, such as those of tests/golden/models) a few steps are trained on a small world, for every
kind of item identity; the run is exported both ways, the Python block of each export's README.md is run as it stands, and its
rankings are compared with `ENGINE rank --json`. Needs torch, transformers, peft and jinja2.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")

WORDS = ["red", "blue", "green", "oak"]


def world(folder):
    data = folder / "world"
    data.mkdir()
    write = lambda name, rows: (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write("items.jsonl", [{"item": f"i{i}", "text": f"{WORDS[i % 4]} desk {i}"} for i in range(12)])

    def row(k):
        history = [f"i{k * 5 % 12}", f"i{(k * 7 + 1) % 12}"]
        target = [f"i{k * 3 % 12}"]
        if k % 3:
            return {"task": "rec", "history": history, "target": target}
        return {"task": "search", "history": history, "query": f"{WORDS[k % 4]} desk", "target": target}

    for split, n in [("train", 60), ("valid", 12), ("test", 15)]:
        write(f"{split}.jsonl", [row(k) for k in range(n)])
    text = [f"the {WORDS[i % 4]} desk number {i} stands by a green kettle\n" for i in range(60)]
    (data / "general.txt").write_text("".join(text))
    return data


ASKED = [
    {"task": "rec", "history": ["i1", "i2", "i5"]},
    {"task": "search", "history": ["i4"], "query": "green desk"},
    {"task": "search", "query": "the oak kettle"},
]


def engine(program, *args):
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program} {' '.join(map(str, args))}\n{done.stderr}")
    return done.stdout


def block(card):
    return re.search(r"## With transformers\n+```python\n(.*?)```", card.read_text(), re.S).group(1)


def answers(folder):
    """What the card's own code answers, run in the folder as a stranger would."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        names = {}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(block(Path("README.md")), names)
        return [names["rank"](a["task"], a.get("history", ()), a.get("query"), top=5) for a in ASKED]
    finally:
        os.chdir(here)


def check(program, base, folder, identity, chat):
    run = folder / f"{base.name}-{identity}"
    settings = ["gems.rank=4", "train.batch=8", "train.probe_batches=2", "train.validate_every=0", f"data.chat_template={str(chat).lower()}",
                f"data.item_identity={identity}", "data.semantic.codes=4", "data.semantic.levels=2", "null_space.tokens=256",
                "train.evaluate_before=false", "train.evaluate_after=false", "data.item_token=<new_{}>", "train.lr=0.01"]
    sets = [part for setting in settings for part in ("--set", setting)]
    engine(program, "train", "--model", base, "--data", folder / "world", "--out", run, "--steps", 4, "--device", "cpu", *sets)
    wanted = []
    for ask in ASKED:
        flags = [f"--task={ask['task']}"]
        flags += [f"--history={','.join(ask['history'])}"] if "history" in ask else []
        flags += [f"--query={ask['query']}"] if "query" in ask else []
        found = json.loads(engine(program, "rank", "--run", run, "--json", "--top", 5, *flags))
        wanted.append([(row["item"], row["log_likelihood"]) for row in found["items"]])
    worst = 0.0
    for form in ["merged", "peft"]:
        out = folder / f"{run.name}-{form}"
        engine(program, "export", "--run", run, "--out", out, "--format", form, "--rank", "1.0")
        for want, got in zip(wanted, answers(out)):
            scores = dict(got)
            # Where scores are equal to rounding, items may change places.
            gap = max(abs(w - scores.get(item, float("inf"))) for item, w in want[:3])
            worst = max(worst, gap)
            if gap > 2e-3:
                sys.exit(f"{out}: {got}, by the engine {want}")
    print(f"{run.name}: largest difference of a log-likelihood {worst:.1e}", flush=True)


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("engine")
    flags.add_argument("models", nargs="+", type=Path)
    flags.add_argument("--chat", action="store_true", help="prompts inside the models' chat templates")
    flags.add_argument("--identity", default="atomic,text,semantic")
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        world(folder)
        for base in args.models:
            for identity in args.identity.split(","):
                check(args.engine, base.resolve(), folder, identity, args.chat)


if __name__ == "__main__":
    main()
