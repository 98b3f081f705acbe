"""Runs the engine and its peers in turn, one step each a round, and prints what each takes and the ratios.

Every contender is a process of its own that waits between its steps, so load on the machine falls on all alike.
"step" is the median of a steady step's wall time, "cpu" the median of its user and system time, "first" the time from
process start to the end of the first step (loading, first bases), "peak" the most resident memory.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHAPES = ROOT / "benches" / "shapes"
LABELS = 3  # an item's tokens and the end of sequence
CONTENDERS = [("engine", "gems"), ("peer", "three-pass"), ("engine", "lora"), ("peer", "lora")]
COMPILED = [("peer", "three-pass-compiled"), ("peer", "lora-compiled")]  # by torch.compile
# Products in bf16.
BF16 = [("engine", "gems mixed"), ("peer", "three-pass bf16"), ("engine", "lora mixed"), ("peer", "lora bf16")]
# On a checkpoint of one's own; "bf16": weights are kept so.
OF_CHECKPOINT = [("engine", "gems"), ("engine", "gems bf16"), ("engine", "lora"), ("engine", "lora bf16"), ("peer", "lora")]
PAIRS = [("engine gems", "peer three-pass"), ("engine gems", "peer lora"), ("engine lora", "peer lora"), ("engine gems", "engine lora")]
PAIRS_COMPILED = [("engine gems", f"{kind} {method}") for kind, method in COMPILED]
PAIRS_BF16 = [("engine gems mixed", name) for name in ("peer three-pass bf16", "peer lora bf16", "engine lora mixed", "engine gems")]
PAIRS_OF_CHECKPOINT = [("engine gems", "peer lora"), ("engine lora", "peer lora"), ("engine gems bf16", "peer lora"), ("engine lora bf16", "peer lora"),
                       ("engine gems bf16", "engine gems"), ("engine lora bf16", "engine lora")]


def checkpoint(shape, directory):
    """A random checkpoint of a shape, made by transformers."""
    if (directory / "model.safetensors").exists():
        return
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(SHAPES / f"{shape}.json")
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    kind.from_config(config).float().save_pretrained(directory)
    # The engine reads transformers 4's spelling; so does transformers.
    (directory / "config.json").write_text((SHAPES / f"{shape}.json").read_text())


def batch(config, path, sequences, length, labels=LABELS):
    """Two tasks with as many sequences of one length each: no padding, which suits the peers best."""
    token = lambda i: 2 + (i * 7919) % (config["vocab_size"] - 2)
    ids = [[token(s * 977 + i) for i in range(length)] for s in range(2 * sequences)]
    if config.get("is_encoder_decoder"):
        targets = [[token(s * 31 + i) for i in range(labels)] for s in range(2 * sequences)]
    else:
        targets = [[-100] * (length - labels) + row[length - labels :] for row in ids]
    tasks = [0] * sequences + [1] * sequences
    path.write_text(json.dumps({"input_ids": ids, "labels": targets, "tasks": tasks}))


class Contender:
    def __init__(self, kind, method, args, model, data):
        self.name = f"{kind} {method}"
        program = [args.engine] if kind == "engine" else [sys.executable, str(ROOT / "benches/peers/peer.py")]
        method, *bf16 = method.split()
        options = ["--model", str(model), "--batch", str(data), "--method", method] + [f"--{word}" for word in bf16]
        options += ["--rank", str(args.rank), "--threads", str(args.threads)]
        self.started = time.perf_counter()
        self.process = subprocess.Popen(program + options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.steps = []
        self.steps.append(self.step())
        self.first = time.perf_counter() - self.started

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def peak(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(shape, args):
    work = ROOT / "target" / "peers"
    work.mkdir(parents=True, exist_ok=True)
    model, data = args.checkpoint or work / shape, work / f"{shape}.json"
    if not args.checkpoint:
        model.mkdir(parents=True, exist_ok=True)
        checkpoint(shape, model)
    batch(json.loads((model / "config.json").read_text()), data, args.sequences, args.length)
    contenders = []
    chosen = CONTENDERS + COMPILED * args.compiled + BF16 * args.bf16
    if args.checkpoint:
        chosen = OF_CHECKPOINT + [c for c in BF16 if c != ("peer", "three-pass bf16")] * args.bf16
    for kind, method in chosen:
        if not args.only or f"{kind} {method}" in args.only:
            contenders.append(Contender(kind, method, args, model, data))
    for _ in range(args.rounds):
        for contender in contenders:
            time.sleep(0.05)  # a peer's threads stop spinning
            contender.steps.append(contender.step())
    rows = {}
    for c in contenders:
        steady = c.steps[2:] or c.steps[1:]
        rows[c.name] = {
            "first loss": c.steps[0]["loss"],
            "step": statistics.median(s["seconds"] for s in steady),
            "least": min(s["seconds"] for s in steady),
            "cpu": statistics.median(s["cpu"] for s in steady),
            "first": c.first,
            "peak": c.peak(),
        }
        c.close()
    tokens = 2 * args.sequences * (args.length + (LABELS if "t5" in shape else 0))
    print(f"\n{shape}: {tokens} tokens a step in two tasks, rank {args.rank}, {args.threads} threads, {args.rounds} rounds")
    print(f"{'':18}{'first loss':>12}{'step ms':>10}{'least ms':>10}{'cpu ms':>10}{'first s':>10}{'peak MB':>10}")
    for name, r in rows.items():
        print(f"{name:18}{r['first loss']:12.5f}{r['step'] * 1e3:10.1f}{r['least'] * 1e3:10.1f}{r['cpu'] * 1e3:10.1f}{r['first']:10.2f}{r['peak']:10.0f}")
    for ours, theirs in (PAIRS_OF_CHECKPOINT if args.checkpoint else PAIRS + PAIRS_COMPILED * args.compiled) + PAIRS_BF16 * args.bf16:
        if not {ours, theirs} <= rows.keys():
            continue
        ratio = {k: rows[theirs][k] / rows[ours][k] for k in ("step", "least", "cpu", "first", "peak")}
        print(f"{theirs} / {ours}: " + ", ".join(f"{k} {v:.2f}" for k, v in ratio.items()))
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    parser.add_argument("--shape", action="append")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="this Hugging Face directory instead of random ones of a shape")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=8, help="sequences of each task")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence (of the encoder's, for T5)")
    parser.add_argument("--compiled", action="store_true", help="the peers under torch.compile too")
    parser.add_argument("--bf16", action="store_true", help="all of them with products in bf16 too")
    parser.add_argument("--only", action="append", help="this contender (`engine gems bf16`); all of them wait in memory at once")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    shapes = [args.checkpoint.name] if args.checkpoint else args.shape or ["llama-tiny", "llama-60m", "t5-small"]
    results = {shape: measure(shape, args) for shape in shapes}
    if args.json:
        print(json.dumps(results))


main()
