"""The same bits on any number of ranks."""

import json
import shutil

import runs
from runs import builds, command, launcher, run, same, settings, trained

METHODS = {
    "gems": "null_space.tokens=400 distributed.check_every=2",
    "gems-all": "null_space.side=output gems.gates.kind=learned gems.surgery=pcgrad optimizer.clip_norm=0.05 "
                "optimizer.weight_decay=0.1 train.micro_batch_tokens=200 gems.refresh=sketch "
                "distributed.overlap=true",
    "gems-heuristic": "gems.gates.kind=heuristic optimizer.norms=true optimizer.biases=true",
    "gems-metric": "null_space.side=metric null_space.pull=0.2 rehearsal.every=2 null_space.tokens=400",
    "galore": "gems.method=galore null_space.side=none",
    "lora": "gems.method=lora train.validate_every=3",
    "full": "gems.method=full null_space.side=none optimizer.embeddings=all",
    "rows": "gems.method=rows",
    "absent": "train.batch=3 distributed.overlap=true optimizer.weight_decay=0.1 null_space.side=none null_space.item_rows=0.0",
    "semantic": "data.item_identity=semantic data.semantic.codes=4 data.semantic.levels=2 null_space.tokens=400",
}


def bits_under(name, sizes, methods=None):
    start = launcher(name)
    for method, text in METHODS.items():
        if methods and method not in methods:
            continue
        one = runs.HOME / f"one-{method}.json"
        if not one.exists():
            one.write_text(json.dumps(trained(f"one-{method}", text)))
        for n in sizes:
            found = trained(f"{name}-{n}-{method}", text, start(n))
            same(f"{method} on {n} ranks", json.loads(one.read_text()), found)


def bits_openmpi():
    """Every method on 2, 3 and 4 ranks of Open MPI gives the bits of one process."""
    bits_under("openmpi", [2, 3, 4])


def bits_mpich():
    """The same on 3 ranks of MPICH."""
    bits_under("mpich", [3])


def bits_t5():
    """An encoder-decoder on 3 ranks."""
    start = launcher("openmpi")
    text = "optimizer.norms=true null_space.tokens=400"
    same("t5", trained("one-t5", text, (), "t5_v11"), trained("three-t5", text, start(3), "t5_v11"))


def resume():
    """A run of 4 ranks, gone on with inside a window on 1, 2, 3 and 4, ends as one that was never stopped."""
    start, text = launcher("openmpi"), "train.steps=8 gems.refresh=sketch null_space.side=none"
    whole = trained("resume-whole", text)
    trained("resume-four", text, start(4))
    for step in (runs.HOME / "resume-four/checkpoints").glob("step-*"):
        if int(step.name.split("-")[1]) > 5:
            shutil.rmtree(step)
    for n in [1, 2, 3, 4]:
        shutil.copytree(runs.HOME / "resume-four", runs.HOME / f"resume-{n}", symlinks=True)
        again = [runs.BINARY, "train", "--json", "--resume", "auto", "--out", f"resume-{n}"]
        done = run(again, start(n) if n > 1 else ())
        same(f"on {n} ranks", whole, builds.observed(runs.HOME / f"resume-{n}", done))


def commands():
    """evaluate, rank --batch and basis print and write the same bytes on 1, 2 and 3 ranks; 7 requests on 4."""
    start = launcher("openmpi")
    run(command("commands", METHODS["gems"]))
    asked = [{"history": [f"i{k % 12}"]} if k % 3 else {"query": "oak desk"} for k in range(7)]
    (runs.HOME / "asked.jsonl").write_text("".join(json.dumps(a) + "\n" for a in asked))
    basis = ["--model", "models/llama_tied", "--data", "data", *settings("")]
    calls = {
        "evaluate": ["evaluate", "--run", "commands", "--json", "--set", "evaluate.batch_tokens=40"],
        "rank": ["rank", "--run", "commands", "--batch", "asked.jsonl", "--top", "5"],
        "basis": ["basis", *basis, "--out", "learned.safetensors", "--set", "null_space.tokens=600", "--json"],
    }
    for name, call in calls.items():
        outputs = []
        for n in [1, 2, 3, 4]:
            done = run([runs.BINARY, *call], start(n) if n > 1 else ())
            file = runs.HOME / "learned.safetensors"
            outputs.append((done.stdout, file.read_bytes() if name == "basis" else b""))
        assert all(output == outputs[0] for output in outputs), f"{name} differs"


def bytes_sent():
    """The bytes of a step are 2 S (W - 1) / W, up to padding; one process sends none."""
    start, sent = launcher("openmpi"), {}
    for n in [2, 4]:
        run(command(f"bytes-{n}", "null_space.side=none"), start(n))
        lines = [json.loads(l) for l in (runs.HOME / f"bytes-{n}/metrics.jsonl").read_text().splitlines()]
        sent[n] = lines[0]["exchange_bytes"]
        assert lines[0]["ranks"] == n and "wait_ms" in lines[0]
    # The same in every step, windows apart.
    assert abs(sent[4] / sent[2] - (3 / 4) / (1 / 2)) < 1e-3, sent
