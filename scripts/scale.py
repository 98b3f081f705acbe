#!/usr/bin/env python3
"""What the engine's commands cost at growing sizes: a table of times and peak memory, and the law (the exponent of size).

    scripts/scale.py items --sizes 1000 10000 100000      # atomic items: rows, trie, head, full ranking
    scripts/scale.py semantic|history|tasks|rank|events   # k-means over embeddings, .. ; `events` is `prepare`

Every size is a run of its own: a made-up world in the engine's public formats, the demo's model (or --model DIR), a few
steps of training with validation and ranking, and `export` off. Columns are seconds of the phases in `result.json` and of
the median step; *exponent* is the slope of log(seconds) over log(size) between the two largest sizes. Figures under a
hundredth of a second are no law.
"""

import argparse
import json
import math
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

SIZES = {
    "items": [1_000, 10_000, 100_000],
    "semantic": [1_000, 10_000, 100_000],
    "history": [8, 32, 128, 512],
    "tasks": [2, 4, 8, 16],
    "rank": [4, 16, 32, 64],
    "events": [1_000_000, 10_000_000],
}
WORDS = "red blue green yellow black white brown grey round square long short soft hard warm cold".split()


def measured(command, watched=None):
    """Runs a command: wall and CPU seconds, peak resident MB, and the most MB that the directory `watched` held."""
    start, most, over = time.monotonic(), [0], threading.Event()

    def watch():
        while not over.wait(0.25):
            found = subprocess.run(["du", "-sk", watched], capture_output=True, text=True).stdout.split()
            most[0] = max(most[0], int(found[0]) if found else 0)

    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watcher = threading.Thread(target=watch) if watched else None
    if watcher:
        watcher.start()
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    over.set()
    if watcher:
        watcher.join()
    if status:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{errors.decode()}")
    row = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak MB": usage.ru_maxrss / 1024}
    return {**row, "disk MB": most[0] / 1024} if watched else row


def world(directory, items=1_000, tasks=2, history=12, rows=256, tests=32):
    """A data directory of random requests: `rows` to train on and `tests` of each task to validate and to test."""
    rng = random.Random(1)
    directory.mkdir(parents=True)
    with open(directory / "items.jsonl", "w") as file:
        for item in range(items):
            text = f"{rng.choice(WORDS)} {rng.choice(WORDS)} {rng.choice(WORDS)} {rng.choice(WORDS)}"
            file.write(f'{{"item":"i{item}","text":"{text}"}}\n')
    for split, count in (("train", rows), ("valid", tests * tasks), ("test", tests * tasks)):
        with open(directory / f"{split}.jsonl", "w") as file:
            for row in range(count):
                seen = [f"i{rng.randrange(items)}" for _ in range(history)]
                request = {"task": f"t{row % tasks}", "history": seen, "target": [f"i{rng.randrange(items)}"]}
                file.write(json.dumps(request) + "\n")


def trained(engine, model, directory, data, settings, steps):
    """A short run with ranking before and after; its phases and its median step."""
    out = directory / "run"
    # Every request is a task's number and the history: the same tokens whatever the task.
    templates = [f"data.templates.t{t}={{{{ history }}}} next :" for t in range(settings.pop("tasks", 2))]
    plain = {
        "train.steps": steps, "train.validate_every": steps, "train.batch": 16, "train.export": "false",
        "train.evaluate_before": "false", "null_space.side": "none", "null_space.item_rows": 0,
        "gems.refresh_every": 10, "checkpoint.every": 0, **settings,
    }
    pairs = [f"{key}={value}" for key, value in plain.items()] + templates
    flags = [word for pair in pairs for word in ("--set", pair)]
    row = measured([engine, "train", "--model", model, "--data", data, "--out", out, "--json", *flags])
    steps = [json.loads(line).get("step_ms") for line in open(out / "metrics.jsonl")]
    row["step"] = statistics.median(ms for ms in steps if ms) / 1e3
    row.update(json.loads((out / "result.json").read_text())["phases"])
    return row


def demo_model(engine, directory):
    """The demo's model, which `--dry-run` unpacks."""
    subprocess.run([engine, "train", "--dry-run", "--out", directory / "demo"], check=True, stdout=subprocess.DEVNULL)
    return directory / "demo" / "demo" / "model"


def events(engine, directory, size):
    world = ["--users", max(1, size // 12), "--items", max(1_000, size // 100), "--length", 12]
    subprocess.run([str(c) for c in [engine, "prepare", "synth", *world, "--events", "--format", "parquet", "--json",
                                     "--out", directory / "log"]], check=True, stdout=subprocess.DEVNULL)
    log = directory / "log" / "events.parquet"
    (directory / "out").mkdir()
    row = measured([engine, "prepare", "events", log, "--format", "parquet", "--negatives", "none", "--json", "--max-items",
                    size, "--out", directory / "out" / "data"], directory / "out")
    row["read MB"] = log.stat().st_size / 2**20
    return row


def one(args, axis, size, directory):
    if axis == "events":
        return events(args.engine, directory, size)
    model = args.model or demo_model(args.engine, directory)
    shape, settings = {}, {}
    if axis in ("items", "semantic"):
        shape["items"] = size
    if axis == "semantic":
        settings["data.item_identity"] = "semantic"
        shape["tests"] = 1  # ranking among all passes every inner node of the trie through the model
    if axis == "history":
        shape["history"] = size
        settings.update({"data.history_limit": size, "data.max_length": size + 64})
    if axis == "tasks":
        shape["tasks"] = settings["tasks"] = size
        settings.update({"gems.rank": 16, "gems.task_rank": 4})  # sixteen of them fit 128 inputs
    if axis == "rank":
        settings["gems.rank"] = size
    world(directory / "data", **shape)
    return trained(args.engine, model, directory, directory / "data", settings, args.steps)


def table(axis, rows):
    sizes = list(rows)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"| {axis} | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for size in sizes:
        print(f"| {size:,} | " + " | ".join(f"{rows[size].get(name, 0):.4g}" for name in columns) + " |")
    if len(sizes) > 1:
        small, large = rows[sizes[-2]], rows[sizes[-1]]
        span = math.log(sizes[-1] / sizes[-2])
        slope = lambda name: math.log(large[name] / small[name]) / span if small.get(name, 0) > 0.01 else math.nan
        print("| exponent | " + " | ".join(f"{slope(name):.2f}" for name in columns) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axis", nargs="+", choices=SIZES)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--engine", default="target/release/gems-engine")
    parser.add_argument("--model", help="a Hugging Face directory instead of the demo's model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--temp", help="where the worlds are written")
    args = parser.parse_args()
    for axis in args.axis:
        rows = {}
        for size in args.sizes or SIZES[axis]:
            directory = pathlib.Path(tempfile.mkdtemp(dir=args.temp, prefix="scale-"))
            try:
                rows[size] = one(args, axis, size, directory)
            finally:
                shutil.rmtree(directory)
        table(axis, rows)


if __name__ == "__main__":
    main()
