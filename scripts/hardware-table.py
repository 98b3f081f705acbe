#!/usr/bin/env python3
"""The table of docs/hardware.md: the memory that a training step takes on a GPU, as the plan counts it.

    scripts/hardware-table.py target/release/gems-engine [SHAPE...] > table.md

Every row runs a step on the null device, which computes nothing and counts every byte; no GPU is needed. Minutes, and up to
some 20 GB of host memory for 8B.
"""

import json
import subprocess
import sys

SHAPES = ["t5-base", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "llama-3.1-8b"]
METHODS = ["gems", "lora", "galore", "full"]
LARGE = {"qwen2.5-7b", "llama-3.1-8b"}
CARDS = [8, 12, 16, 24, 40, 48, 80, 141]
# What a driver and its context take beside tensors, and what fragmentation may.
SPARE = 1.0


def planned(engine, shape, method, tokens, checkpointing):
    settings = [f"gems.method={method}", f"train.activation_checkpointing={str(checkpointing).lower()}"]
    command = [engine, "profile", "--shape", shape, "--tokens", str(tokens), "--device", "null", "--json"]
    command += ["--steps", "1", "--warmup", "1"] + [word for s in settings for word in ("--set", s)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    # The larger of the plan and what was given out: a refresh may be the peak.
    return max(result["predicted_memory_bytes"], result["peak_memory_bytes"]) / 1e9


def card(gigabytes):
    fitting = [size for size in CARDS if gigabytes + SPARE <= size]
    return f"{fitting[0]} GB" if fitting else "more than one"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__.strip())
    engine, shapes = sys.argv[1], sys.argv[2:] or SHAPES
    print("| model | method | 2048 tokens a step | 8192 | 8192, activations again | smallest card for 2048 tokens |")
    print("| --- | --- | --- | --- | --- | --- |")
    for shape in shapes:
        large = shape in LARGE
        for method in METHODS[:2] if large else METHODS:
            few = planned(engine, shape, method, 2048, large)
            # What nobody would do with a large model is not worth its minutes.
            many = "" if large else f"{planned(engine, shape, method, 8192, False):.1f}"
            again = planned(engine, shape, method, 8192, True)
            print(f"| {shape} | {method} | {few:.1f} GB | {many} | {again:.1f} | {card(few)} |", flush=True)


main()
