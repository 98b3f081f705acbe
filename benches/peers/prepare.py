"""The engine's `prepare events` beside programs of our own in pandas and polars that do the same, on the same events.

All read one table of events, drop repeated ones, take the 5-core to its fixed point, hold out the last request of every
user and task for the test and the one before for validation, take held-out pairs of user and item out of training
and its histories, and write train, valid and test as JSON lines. `same` compares what they wrote, row by row. The peers
may rely on two facts of the made-up world: no user meets an item twice, and no two events of a user share an instant.

    python benches/peers/prepare.py --users 400000 --items 50000 --format jsonl parquet

Every contender is a process of its own with one thread; the table shows wall time, CPU time (user and system: load
on the machine hardly changes it), the most resident memory, and events a CPU second.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

CORE, MOST = 5, 50


def pandas_program(events, out):
    import pandas as pd

    df = pd.read_parquet(events) if events.endswith(".parquet") else pd.read_json(events, lines=True, convert_dates=False)
    df = df.drop_duplicates(["user", "timestamp", "item", "task", "query"])
    while True:
        before = len(df)
        df = df[df.groupby("item")["item"].transform("size") >= CORE]
        df = df[df.groupby("user")["user"].transform("size") >= CORE]
        if len(df) == before:
            break
    df = df.sort_values(["user", "timestamp"], kind="stable")
    group = df.groupby(["user", "task"])
    size, last = group["item"].transform("size"), group.cumcount(ascending=False)
    df["split"] = 0
    df.loc[(size >= 3) & (last == 1), "split"] = 1
    df.loc[(size >= 3) & (last == 0), "split"] = 2
    files = [open(os.path.join(out, f"{name}.jsonl"), "w") for name in ("train", "valid", "test")]
    columns = [df[name].tolist() for name in ("user", "timestamp", "item", "task", "query", "split")]
    current, open_items, fair_items, all_items = None, [], [], []
    for user, timestamp, item, task, query, split in zip(*columns):
        if user != current:
            current, open_items, fair_items, all_items = user, [], [], []
        history = (open_items, fair_items, all_items)[split][-MOST:]
        query = query if isinstance(query, str) else None
        if history or query:
            row = {"task": task, "user": user, "history": history}
            if query:
                row["query"] = query
            files[split].write(json.dumps({**row, "target": [item], "timestamp": timestamp}) + "\n")
        all_items.append(item)
        if split < 2:
            fair_items.append(item)
        if split < 1:
            open_items.append(item)
    for file in files:
        file.close()


def polars_program(events, out):
    import polars as pl

    df = pl.read_parquet(events) if events.endswith(".parquet") else pl.read_ndjson(events)
    df = df.unique(["user", "timestamp", "item", "task", "query"], keep="first", maintain_order=True)
    while True:
        before = len(df)
        df = df.filter(pl.len().over("item") >= CORE).filter(pl.len().over("user") >= CORE)
        if len(df) == before:
            break
    df = df.sort("user", "timestamp", maintain_order=True)
    last = pl.len().over("user", "task") - pl.int_range(pl.len()).over("user", "task") - 1
    df = df.with_columns(
        pl.when((pl.len().over("user", "task") >= 3) & (last == 0)).then(2)
        .when((pl.len().over("user", "task") >= 3) & (last == 1)).then(1)
        .otherwise(0).alias("split")
    )
    for split, name in enumerate(("train", "valid", "test")):
        seen = pl.col("split") <= split
        lists = df.filter(seen).group_by("user", maintain_order=True).agg(pl.col("item").alias("list"))
        rows = df.with_columns((seen.cum_sum() - seen).over("user").cast(pl.Int64).alias("before"))
        rows = rows.filter(pl.col("split") == split).join(lists, on="user", how="left", maintain_order="left")
        start = pl.max_horizontal(pl.col("before") - MOST, 0)
        rows = rows.with_columns(pl.col("list").list.slice(start, pl.col("before") - start).alias("history"))
        rows = rows.filter((pl.col("history").list.len() > 0) | pl.col("query").is_not_null())
        rows = rows.select("task", "user", "history", "query", pl.concat_list("item").alias("target"), "timestamp")
        rows.write_ndjson(os.path.join(out, f"{name}.jsonl"))


def measured(command, environment):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    if status:
        sys.exit(f"{command} failed:\n{process.stderr.read().decode()}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def same(a, b):
    """Whether two outputs hold the same rows; their order may differ."""
    def rows(directory, name):
        def row(line):
            row = json.loads(line)
            return json.dumps({key: value for key, value in row.items() if value is not None}, sort_keys=True)

        return sorted(row(line) for line in open(directory / f"{name}.jsonl"))

    return all(rows(a, name) == rows(b, name) for name in ("train", "valid", "test"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="target/release/gems-engine")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--format", nargs="+", default=["jsonl", "parquet"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare what the contenders wrote (holds all rows)")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        program, events, out = args.run
        return {"pandas": pandas_program, "polars": polars_program}[program](events, out)
    one = {name: "1" for name in ("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS", "ARROW_NUM_THREADS")}
    for kind in args.format:
        with tempfile.TemporaryDirectory() as directory:
            directory = pathlib.Path(directory)
            world = ["--users", str(args.users), "--items", str(args.items), "--seed", "1", "--format", kind]
            subprocess.run([args.engine, "prepare", "synth", *world, "--events", "--json", "--out", directory / "log"],
                           check=True, stdout=subprocess.DEVNULL)
            events = str(directory / "log" / f"events.{kind}")
            count = args.users * 12
            print(f"{kind}: {count:,} events, {os.path.getsize(events) / 1e6:.0f} MB")
            best = {}
            for _ in range(args.rounds):
                for name in ("engine", "pandas", "polars"):
                    out = directory / name
                    shutil.rmtree(out, ignore_errors=True)
                    if name == "engine":
                        command = [args.engine, "prepare", "events", events, "--negatives", "none", "--json", "--out", out]
                    else:
                        out.mkdir()
                        command = [sys.executable, __file__, "--run", name, events, out]
                    figures = measured([str(c) for c in command], one)
                    best[name] = min(best.get(name, figures), figures, key=lambda f: f[1])
            for name, (wall, cpu, memory) in best.items():
                ratio = cpu / best["engine"][1]
                print(f"  {name:8} wall {wall:7.1f} s   cpu {cpu:7.1f} s   {memory:6.0f} MB"
                      f"   {count / cpu / 1e6:5.2f} M events/s   {ratio:5.1f} x engine")
                if args.check and name != "engine":
                    print(f"  {name:8} wrote the same rows: {same(directory / 'engine', directory / name)}")


if __name__ == "__main__":
    main()
