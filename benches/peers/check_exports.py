"""Opens what the engine exports in transformers and PEFT, and compares with the engine's own likelihoods.

For every model directory and method: trains a few steps, exports `merged` and `peft`, ranks every item after one
history with the engine, and computes the same log-likelihoods in transformers. Any difference above the tolerance and what the export told fails.

    python benches/peers/check_exports.py --engine target/release/gems-engine [--models DIR]
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import peft
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
METHODS = ["gems", "galore", "lora", "full", "published"]
HISTORY = ["i1", "i2", "i5"]
TEMPLATE = "after {{ history }} comes"
WORDS = ["red", "blue", "green", "oak"]


def world(directory):
    """Twelve items, two tasks, some text."""
    directory.mkdir()
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
    items = [{"item": f"i{i}", "text": f"{WORDS[i % 4]} desk {i}"} for i in range(12)]
    (directory / "items.jsonl").write_text(lines(items))
    for split, count, shift in (("train", 60, 0), ("valid", 6, 1), ("test", 6, 2)):
        rows = []
        for k in range(count):
            history = [f"i{(k * 5 + shift) % 12}", f"i{(k * 7 + 1) % 12}"]
            row = {"task": "rec", "history": history, "target": [f"i{(k * 3 + 2 * shift) % 12}"]}
            if k % 3 == 0:
                row |= {"task": "search", "query": f"{WORDS[k % 4]} desk"}
            rows.append(row)
        (directory / f"{split}.jsonl").write_text(lines(rows))
    text = (f"the {WORDS[i % 4]} desk number {i} stands by a green kettle\n" for i in range(60))
    (directory / "general.txt").write_text("".join(text))


def run(engine, *args):
    done = subprocess.run([engine, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def likelihoods(model, tokenizer, items):
    """log p(item token | prompt) of single-token items, as the engine computes them."""
    names = {row["item"]: row["tokens"] for row in items}
    text = TEMPLATE.replace("{{ history }}", " ".join(names[i] for i in HISTORY))
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(input_ids=ids, decoder_input_ids=start).logits
        else:
            if ids[0, -1] == tokenizer.eos_token_id:
                ids = ids[:, :-1]
            logits = model(input_ids=ids).logits
    logs = torch.log_softmax(logits[0, -1].float(), -1)
    return {row["item"]: logs[row["ids"][0]].item() for row in items}


def opened(path):
    config = transformers.AutoConfig.from_pretrained(path)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    strange = [k for k in info["missing_keys"] if "embed_tokens" not in k and "lm_head" not in k]
    assert not strange and not info["unexpected_keys"], info
    return model.eval()


def check(engine, base, method, data, work):
    out = work / f"{base.name}-{method}"
    how = ["--preset", "published"] if method == "published" else ["--method", method]
    sets = ["gems.rank=4", "gems.refresh_every=4", "gems.refresh_window=2", "train.batch=8", "train.lr=0.01",
            "train.probe_batches=2", "train.validate_every=0", "data.item_token=<new_{}>", "data.eos=never",
            f'data.templates.rec="{TEMPLATE}"', "train.evaluate_before=false", "train.evaluate_after=false"]
    flags = [flag for s in sets for flag in ("--set", s)]
    run(engine, "train", "--json", "--model", base, "--data", data, "--out", out, "--steps", 6, *how, *flags)
    ranked = json.loads(run(engine, "rank", "--json", "--run", out, "--history", ",".join(HISTORY), "--top", 99))
    ours = {row["item"]: row["log_likelihood"] for row in ranked["items"]}
    told = {}
    for form in ("merged", "peft"):
        to = work / f"{out.name}-{form}"
        answer = run(engine, "export", "--json", "--rank", "1.0", "--format", form, "--run", out, "--out", to)
        told[form] = json.loads(answer.splitlines()[-1])["largest_logit_difference"]
    items = [json.loads(line) for line in (work / f"{out.name}-merged" / "items.jsonl").read_text().splitlines()]
    differ = {}
    for form in ("merged", "peft"):
        path = work / f"{out.name}-{form}"
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        if form == "merged":
            model = opened(path)
        else:
            model = opened(base)
            size = json.loads((work / f"{out.name}-merged" / "config.json").read_text())["vocab_size"]
            model.resize_token_embeddings(size, mean_resizing=False)
            model = peft.PeftModel.from_pretrained(model, path).eval()
        theirs = likelihoods(model, tokenizer, items)
        differ[form] = max(abs(ours[i] - theirs[i]) for i in ours)
    return told, differ


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default=str(ROOT / "target/release/gems-engine"))
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "tests/golden/models")
    parser.add_argument("--tolerance", type=float, default=2e-4)
    args = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        world(work / "world")
        print(f"{'model':24}{'method':12}{'merged told':>14}{'merged':>10}{'peft told':>14}{'peft':>10}")
        for base in sorted(p for p in args.models.iterdir() if p.is_dir()):
            for method in METHODS:
                told, differ = check(args.engine, base, method, work / "world", work)
                # A logit that is off by d moves a log-likelihood by at most 2 d; what an export cannot hold it tells.
                worst = max(worst, *(differ[form] - 2 * told[form] for form in differ))
                row = [told["merged"], differ["merged"], told["peft"], differ["peft"]]
                print(f"{base.name:24}{method:12}{row[0]:14.1e}{row[1]:10.1e}{row[2]:14.1e}{row[3]:10.1e}", flush=True)
    if worst > args.tolerance:
        sys.exit(f"largest untold difference {worst:.1e}, more than {args.tolerance:.1e}")


main()
