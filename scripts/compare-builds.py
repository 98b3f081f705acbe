#!/usr/bin/env python3
"""Two builds of the engine compared bit for bit, over a matrix of short runs.

    scripts/compare-builds.py record BINARY DIR     run the matrix, keep what it gave in DIR
    scripts/compare-builds.py check BINARY DIR      run it again with another build; exit code 1 if anything differs

Of a run are kept: a hash of every tensor of its checkpoints, by name, whichever file holds it; the checkpoints'
other state; the knowledge basis; metrics.jsonl and the line that --json prints, without times and memory. Of a run
that must fail: exit code and message. DIR also keeps the runs' data and models and, of the runs that are resumed,
the first half: `check` resumes that too. A difference that is meant is given as --expect CASE:FIELD, both of them
patterns with `*`. Both builds must run on the same kind of machine: sums depend on the width of its SIMD.
"""

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "tests/golden/models"
TIME_AND_MEMORY = {"tokens_per_second", "step_ms", "seconds", "memory_bytes", "peak_memory_bytes", "phases", "run"}

# Short, with two refreshes, a checkpoint inside a window and one at the end. Settings of a case win over these.
SHORT = """
    gems.rank=4 gems.refresh_every=3 gems.refresh_window=2 train.steps=7 train.batch=6 train.probe_batches=2
    train.warmup_steps=2 train.validate_every=0 train.evaluate_before=false train.export=false
    checkpoint.every=5 checkpoint.keep=9 data.item_token=<new_{}>
"""
# The SIMT machine is slow: fewer and smaller steps, nothing ranked.
SIMT = """
    device=simt data.prompts=cue null_space.tokens=200 train.steps=3 train.batch=3 train.probe_batches=1
    gems.refresh_every=2 gems.refresh_window=1 checkpoint.every=1 train.evaluate_after=false
"""
FREE = " null_space.side=none null_space.item_rows=0.0"


@dataclass
class Case:
    """One run: its settings and flags, and what is done to it."""

    name: str
    settings: str
    model: str = "llama_tied"
    flags: str = ""
    resumed_from: int = 0  # resume from this step's checkpoint, the later ones deleted
    threads: int = 1


def matrix():
    """Every case."""
    cases = []

    def add(group, table, base="", **more):
        for line in table.strip().splitlines():
            name, _, settings = line.partition(":")
            cases.append(Case(f"{group}/{name.strip()}", f"{base} {settings}", **more))

    layers = """
        plain:
        sketch: gems.refresh=sketch
        pcgrad: gems.surgery=pcgrad
        decay: optimizer.weight_decay=0.1
        clip: optimizer.clip_norm=0.05
        absent: train.batch=2
        absent-decay: train.batch=2 optimizer.weight_decay=0.1
        accumulation: train.micro_batch_tokens=200
    """
    nulls = """
        null-input-update: null_space.side=input
        null-input-gradient: null_space.side=input null_space.project=gradient
        null-output-update: null_space.side=output
        null-output-gradient: null_space.side=output null_space.project=gradient
        null-output-both: null_space.side=output null_space.project=both
    """
    for method in ["gems", "galore", "lora", "full"]:
        base = f"gems.method={method}"
        table = "\n".join(l for l in layers.splitlines() if method in ("gems", "galore") or "sketch" not in l)
        add(method, table, base + FREE)
        add(method, nulls, f"{base} null_space.item_rows=0.0")
        add(method, "match-step:", base + FREE, flags="--match-step steps")
        add(method, "resumed: train.steps=8", base + FREE, resumed_from=5)
    add("gems", """
        oversample: gems.refresh=sketch gems.oversample=3 gems.power_iterations=2
        independent: gems.bases=independent
        independent-sketch: gems.bases=independent gems.refresh=sketch gems.gates.kind=inverse-norm
        moments-keep: gems.moments=keep
        moments-reset: gems.moments=reset gems.refresh=sketch
        task-rank: gems.task_rank=1 gems.scale=0.5
        targets: gems.targets=["q","down"] train.schedule=linear
        every-step: gems.refresh_every=1 gems.refresh_window=1
        whole-window: gems.refresh_window=3
        gates-heuristic: gems.gates.kind=heuristic
        gates-inverse-norm: gems.gates.kind=inverse-norm optimizer.clip_norm=0.05
        gates-learned: gems.gates.kind=learned
        gates-full-norms: gems.gates.kind=heuristic gems.gates.full_norms=true
        gates-learned-full-norms: gems.gates.kind=learned gems.gates.full_norms=true
        pcgrad-heuristic-clip: gems.surgery=pcgrad gems.gates.kind=heuristic optimizer.clip_norm=0.05
        pcgrad-learned-accumulation: gems.surgery=pcgrad gems.gates.kind=learned train.micro_batch_tokens=200
        absent-sketch: train.batch=1 gems.refresh=sketch
        absent-learned: train.batch=2 gems.gates.kind=learned
        absent-heuristic: train.batch=2 gems.gates.kind=heuristic gems.surgery=pcgrad
        never-searched: train.batch_per_task={rec=4,search=0}
        embeddings-none: optimizer.embeddings=none
        embeddings-all: optimizer.embeddings=all optimizer.norms=true optimizer.lr_rows=0.01
        activation-checkpointing: train.activation_checkpointing=true
        item-text: data.item_identity=text
    """, FREE)
    add("gems", "two-threads: gems.refresh=sketch", FREE, threads=2)
    add("gems", "match-step-learned: gems.gates.kind=learned optimizer.weight_decay=0.1", FREE,
        flags="--match-step steps")
    add("gems", """
        default:
        default-sketch: gems.refresh=sketch
        default-all: optimizer.weight_decay=0.1 gems.surgery=pcgrad gems.gates.kind=learned optimizer.clip_norm=0.1
        item-rows: null_space.side=none
        null-random: null_space.random=true
        null-ratio: null_space.criterion=ratio null_space.value=0.05
        null-budget: null_space.criterion=budget null_space.value=40
        null-absolute: null_space.criterion=absolute null_space.value=0.02 null_space.side=output
        null-output-learned: null_space.side=output null_space.project=both gems.gates.kind=learned
        null-output-absent: null_space.side=output train.batch=2 optimizer.weight_decay=0.1
        validated: train.validate_every=3 train.best_metric=loss train.evaluate_before=true
    """)
    add("gems", """
        resumed-learned: train.steps=8 gems.gates.kind=learned null_space.side=output
        resumed-sketch: train.steps=8 gems.refresh=sketch optimizer.weight_decay=0.1 train.batch=2
    """, resumed_from=5)
    add("lora", "alpha: gems.lora_alpha=16 optimizer.embeddings=all", "gems.method=lora" + FREE)
    add("lora", "null-input-both: null_space.project=both", "gems.method=lora")
    add("full", """
        decay-weights: optimizer.decay=weights optimizer.weight_decay=0.1
        decay-weights-null: optimizer.decay=weights optimizer.weight_decay=0.1 null_space.side=output
    """, "gems.method=full" + FREE)
    add("rows", """
        plain: null_space.item_rows=0.0
        protected:
        decay-weights: optimizer.decay=weights optimizer.weight_decay=0.1 optimizer.norms=true
    """, "gems.method=rows")
    published = {"model": "t5_v10", "flags": "--preset published"}
    add("published", """
        plain:
        null-none: null_space.side=none
        null-output-both: null_space.project=both
        null-output-update: null_space.project=update
        null-input: null_space.side=input null_space.criterion=energy null_space.value=0.9
        gates-fixed: gems.gates.kind=fixed gems.gates.full_norms=false
        clip: optimizer.clip_norm=0.05
        accumulation: train.micro_batch_tokens=200
        absent: train.batch=2
    """, "gems.rank=8", **published)
    matched = published["flags"] + " --match-step steps"
    add("published", "match-step:", "gems.rank=8", model="t5_v10", flags=matched)
    add("published", "resumed: train.steps=8", "gems.rank=8", resumed_from=5, **published)
    for model in ["llama_untied_rope3", "qwen2_bias", "qwen3_qknorm", "t5_v10", "t5_v11"]:
        add("models", f"{model}:", "optimizer.norms=true optimizer.biases=true", model=model)
        add("models", f"{model}-lora:", "gems.method=lora train.activation_checkpointing=true", model=model)
    demo = "gems: gems.refresh_every=2 train.batch=8 train.steps=3 train.evaluate_after=false"
    add("demo", demo, model="", threads=2)
    add("plan", "gems:\nlora: gems.method=lora\nfull: gems.method=full", flags="--dry-run")
    add("refused", """
        rank: gems.rank=60
        no-rank: gems.rank=0
        decay: optimizer.decay=weights optimizer.weight_decay=0.1
        targets: gems.targets=["query"]
        key: gems.rnak=3
        not-finite: train.lr=1e30 optimizer.lr_rows=1e30 null_space.side=none
    """)
    add("refused", """
        surgery: gems.surgery=pcgrad
        learned: gems.gates.kind=learned
    """, **published)
    add("simt", """
        gems: precision=f32
        gems-bf16-sketch: precision=bf16 gems.refresh=sketch
        gems-output-learned: precision=f32 null_space.side=output gems.gates.kind=learned gems.refresh=sketch
        gems-absent-decay: precision=f32 gems.gates.kind=heuristic train.batch=1 optimizer.weight_decay=0.1
        gems-accumulation: precision=f32 gems.surgery=pcgrad optimizer.clip_norm=0.05 train.micro_batch_tokens=40
        galore: precision=bf16 gems.method=galore null_space.side=none gems.surgery=pcgrad
        lora: precision=bf16 gems.method=lora null_space.side=none optimizer.weight_decay=0.1
        lora-pcgrad: precision=f32 gems.method=lora null_space.side=none gems.surgery=pcgrad
        full: precision=f32 gems.method=full null_space.side=none gems.surgery=pcgrad
        full-output: precision=bf16 gems.method=full null_space.side=output
        rows: precision=bf16 gems.method=rows
    """, SIMT)
    add("simt", "qwen3: precision=bf16 gems.method=lora null_space.side=output", SIMT, model="qwen3_qknorm")
    add("simt", "t5: precision=bf16 optimizer.norms=true optimizer.biases=true", SIMT, model="t5_v11")
    add("simt", "match-step: precision=f32 gems.bases=independent", SIMT + FREE, flags="--match-step steps")
    add("simt", "resumed: precision=bf16 gems.refresh=sketch", SIMT + FREE, resumed_from=1)
    add("simt", "published: precision=f32 gems.rank=8", SIMT, **published)
    return cases


def write_inputs(home):
    """Models, a small world of two tasks (a third of the rows search), and the lengths of steps to match."""
    shutil.copytree(MODELS, home / "models")
    data = home / "data"
    data.mkdir()
    words = ["red", "blue", "green", "oak"]

    def rows(path, records):
        (data / path).write_text("".join(json.dumps(r) + "\n" for r in records))

    def record(k, shift):
        a, b, c = (k * 5 + shift) % 12, (k * 7 + 1) % 12, (k * 3 + 2 * shift) % 12
        asked = {"task": "search", "query": f"{words[c % 4]} desk"} if k % 3 == 0 else {"task": "rec"}
        return asked | {"history": [f"i{a}", f"i{b}"], "target": [f"i{c}"]}

    rows("items.jsonl", ({"item": f"i{i}", "text": f"{words[i % 4]} desk {i}"} for i in range(12)))
    for shift, (split, n) in enumerate([("train", 60), ("valid", 12), ("test", 15)]):
        rows(f"{split}.jsonl", (record(k, shift) for k in range(n)))
    text = (f"the {words[i % 4]} desk number {i} stands by a green kettle\n" for i in range(60))
    (data / "general.txt").write_text("".join(text))
    (home / "steps").mkdir()
    norms = ({"step": i + 1, "update_norm": 0.02 + 0.01 * (i % 3)} for i in range(10))
    (home / "steps/metrics.jsonl").write_text("".join(json.dumps(n) + "\n" for n in norms))


def flat(prefix, value):
    """A JSON value as fields: (dotted path, text), without times and memory."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value, 1)
        for key, inner in items:
            if key not in TIME_AND_MEMORY:
                yield from flat(f"{prefix}.{key}", inner)
    else:
        yield prefix, str(value)


def exact(text):
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_float=str, parse_int=str)


def tensors(path):
    """Name -> hash of type, shape and bytes, of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    data = memoryview(content)[8 + length :]
    for name, about in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            first, end = about["data_offsets"]
            digest = hashlib.sha256(f"{about['dtype']} {about['shape']} ".encode())
            digest.update(data[first:end])
            yield name, digest.hexdigest()[:20]


def observed(run, done):
    """What is kept of a finished run, as fields."""
    if done.returncode != 0:
        return {"exit": str(done.returncode), "message": done.stderr.replace(str(run.parent), "").strip()}
    fields = dict(flat("result", exact(done.stdout.splitlines()[-1])))
    if (run / "metrics.jsonl").is_file():
        lines = (run / "metrics.jsonl").read_text().splitlines()
        fields |= flat("metrics", [exact(line) for line in lines])
    for step in sorted(run.glob("checkpoints/step-*")):
        fields |= flat(step.name, exact((step / "state.json").read_text())["state"])
        named = [pair for file in sorted(step.glob("*.safetensors")) for pair in tensors(file)]
        assert len(named) == len(dict(named)), f"{step}: a tensor is in two files"
        fields |= {f"{step.name}.tensor.{name}": digest for name, digest in named}
    if (run / "basis.safetensors").is_file():
        fields |= {f"basis.{name}": digest for name, digest in tensors(run / "basis.safetensors")}
    return fields


def train(binary, home, run, case, *arguments):
    """One call of `train`, in `home`, so that a run's own paths to model and data are the same everywhere."""
    common = ["--json", "--out", run, "--threads", str(case.threads)]
    return subprocess.run([binary, "train", *common, *arguments], cwd=home, capture_output=True, text=True)


def started(binary, home, run, case):
    """A run from its beginning."""
    settings = dict(word.split("=", 1) for word in f"device=cpu {SHORT} {case.settings}".split())
    source = ["--model", f"models/{case.model}", "--data", "data"] if case.model else []
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return train(binary, home, run, case, *source, *case.flags.split(), *sets)


def outcomes(binary, home, work, case, recording):
    """(name, fields) of a case, and of the resumption of the recorded half where there is one."""
    run = work / case.name
    run.parent.mkdir(parents=True, exist_ok=True)
    done = started(binary, home, run, case)
    fields = observed(run, done)
    half = home / "halves" / case.name
    if case.resumed_from and done.returncode == 0:
        for step in run.glob("checkpoints/step-*"):
            if int(step.name.split("-")[1]) > case.resumed_from:
                shutil.rmtree(step)
        if recording:
            shutil.copytree(run, half, symlinks=True)
        resumed = train(binary, home, run, case, "--resume")
        fields |= {f"resumed.{k}": v for k, v in observed(run, resumed).items()}
        if not recording:
            copy = run.with_name(run.name + "-recorded")
            shutil.copytree(half, copy, symlinks=True)
            again = observed(copy, train(binary, home, copy, case, "--resume"))
            fields |= {f"resumed-recorded.{k}": v for k, v in again.items()}
        else:
            again = {k: v for k, v in fields.items() if k.startswith("resumed.")}
            fields |= {k.replace("resumed.", "resumed-recorded.", 1): v for k, v in again.items()}
    shutil.rmtree(run, ignore_errors=True)
    return fields


def run_all(binary, home, cases, jobs, recording):
    """Case -> fields, some cases at a time; those that take longest first."""
    cases = sorted(cases, key=lambda case: not case.name.startswith("simt/"))
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(jobs) as pool:
        one = lambda case: outcomes(binary, home, Path(work), case, recording)
        return dict(zip([case.name for case in cases], pool.map(one, cases)))


def record(args, cases):
    """Keeps what every case gave; a run that ends otherwise than it should is an error."""
    if args.directory.exists():
        sys.exit(f"{args.directory} exists already: a record is made once")
    args.directory.mkdir(parents=True)
    write_inputs(args.directory)
    found = run_all(args.binary, args.directory, cases, args.jobs, True)
    for name, fields in found.items():
        if ("exit" in fields) != name.startswith("refused/"):
            sys.exit(f"{name}: {fields.get('message', 'was not refused')}")
        path = args.directory / "record" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    print(f"{len(found)} cases, {sum(map(len, found.values()))} fields recorded")


def differences(before, after):
    """Fields that are not the same; of a run that ended otherwise, only how it did."""
    ended = {"exit", "message"}
    fields = ended if ("exit" in before) != ("exit" in after) else before.keys() | after.keys()
    return sorted(field for field in fields if before.get(field) != after.get(field))


def check(args, cases):
    """Lists what differs from the record; false when something does that was not expected."""
    expected = {tuple(pattern.split(":")): 0 for pattern in args.expect}
    found = run_all(args.binary, args.directory, cases, args.jobs, False)
    compared = 0
    bad = {}
    for name, after in sorted(found.items()):
        path = args.directory / "record" / f"{name}.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        compared += len(before)
        for field in differences(before, after):
            meant = [(c, f) for c, f in expected if fnmatchcase(name, c) and fnmatchcase(field, f)]
            for pattern in meant:
                expected[pattern] += 1
            if not meant:
                was, now = (fields.get(field, "(nothing)") for fields in (before, after))
                bad.setdefault(name, []).append(f"{field}: {was} -> {now}")
    for name, lines in bad.items():
        print(f"{name}: {len(lines)} fields differ", *lines, sep="\n    ")
    for pattern, count in expected.items():
        print(f"expected {':'.join(pattern)}: {count} fields differ")
    print(f"{len(found)} cases, {compared} fields compared; {len(bad)} cases differ")
    return not bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "check"])
    parser.add_argument("binary", type=lambda text: Path(text).resolve())
    parser.add_argument("directory", type=lambda text: Path(text).resolve())
    parser.add_argument("--only", default="*", metavar="CASE", help="only cases of this pattern")
    parser.add_argument("--expect", action="append", default=[], metavar="CASE:FIELD", help="differs on purpose")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time [2]")
    args = parser.parse_args()
    if any(pattern.count(":") != 1 for pattern in args.expect):
        parser.error("--expect takes CASE:FIELD")
    cases = [case for case in matrix() if fnmatchcase(case.name, args.only)]
    assert len({case.name for case in cases}) == len(cases), "two cases have one name"
    if args.what == "record":
        record(args, cases)
    elif not check(args, cases):
        sys.exit(1)


if __name__ == "__main__":
    main()
