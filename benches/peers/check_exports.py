"""Opens what the engine exports in transformers and PEFT, and compares with the engine's own likelihoods.

For every model directory and method: trains a few steps, exports `merged` and `peft`, ranks every item after one
history with the engine, and computes the same log-likelihoods in transformers. Any difference above the tolerance and what
the export told fails, and so does an item whose token has another id in any of the tokenizer's classes.

    python benches/peers/check_exports.py --engine target/release/gems-engine [--models DIR] [--methods gems,lora]

Models are the golden ones and, around the tokenizers of tests/fixtures/tokenizers, small random ones of the class that
each tokenizer belongs to: with the slow tokenizer's files, with holes among the ids, with and without a begin of sequence.
Run it with transformers 4 and with transformers 5.
"""

import argparse
import json
import os
import pathlib
import shutil
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
SEARCH = "find {{ query }} :"
# What is special in one of the tokenizers, or looks so.
QUERIES = ["red desk", "</s>", "red </s><s> desk", "<|im_end|>", "<|im_end|>\n<|im_start|>system", "<|endoftext|>desk", "<pad>",
           "<extra_id_0>", "<|end_of_text|><|pad|>", "x<y>z </ s >"]
WORDS = ["red", "blue", "green", "oak"]
FOUR = transformers.__version__ < "5"


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


def change(path, how):
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))


def bases(directory):
    """Small random models around the fixtures' tokenizers."""
    small = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, tie_word_embeddings=True)
    # Of bytes, the last ids are moved up: the largest is then 340 + 9.
    kinds = {
        "bytes": transformers.Qwen2Config(vocab_size=352, **small),
        "bytes-holes": transformers.Qwen2Config(vocab_size=360, **small),
        "llama": transformers.LlamaConfig(vocab_size=400, **small),
        "llama-no-bos": transformers.LlamaConfig(vocab_size=400, **small),
        "t5": transformers.T5Config(vocab_size=128, d_model=64, d_kv=8, d_ff=72, num_layers=2, num_heads=4,
                                    decoder_start_token_id=0),
    }
    for name, config in kinds.items():
        to = directory / name
        shutil.copytree(ROOT / "tests/fixtures/tokenizers" / name.split("-")[0], to)
        if name == "bytes-holes":
            def far(value):
                for token, id in value["model"]["vocab"].items():
                    value["model"]["vocab"][token] = id + 9 if id > 320 else id
                value["added_tokens"] = [t | {"id": t["id"] + 9} for t in value["added_tokens"]]
            change(to / "tokenizer.json", far)
            vocabulary = json.loads((to / "tokenizer.json").read_text())["model"]["vocab"]
            (to / "vocab.json").write_text(json.dumps(vocabulary))
            change(to / "tokenizer_config.json", lambda c: c.update(
                added_tokens_decoder={str(int(k) + 9): v for k, v in c["added_tokens_decoder"].items()}))
            change(to / "added_tokens.json", lambda c: c.update({k: v + 9 for k, v in c.items()}))
        if name == "llama-no-bos":
            change(to / "tokenizer_config.json", lambda c: c.update(add_bos_token=False))
        torch.manual_seed(7)
        kind = transformers.T5ForConditionalGeneration if name == "t5" else transformers.AutoModelForCausalLM.from_config
        model = kind(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        model.generation_config.max_length = 77
        model.save_pretrained(to)
        yield to


def run(engine, *args, cwd=None):
    done = subprocess.run([engine, *map(str, args)], capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def tokenizers(path):
    """The tokenizer as each class that can read it does."""
    yield transformers.AutoTokenizer.from_pretrained(path)
    yield transformers.PreTrainedTokenizerFast.from_pretrained(path)
    slow = [name for name in ("vocab.json", "spiece.model", "tokenizer.model") if (path / name).exists()]
    if FOUR and slow:
        yield transformers.AutoTokenizer.from_pretrained(path, use_fast=False)


def check_tokens(path, items, base):
    """Every item's token is one token of its own id, and no token of the base has another id than before."""
    before = json.loads((base / "tokenizer.json").read_text())
    vocabulary = before["model"]["vocab"]
    known = dict(vocabulary) if isinstance(vocabulary, dict) else {v[0]: i for i, v in enumerate(vocabulary)}
    known |= {token["content"]: token["id"] for token in before["added_tokens"]}
    for tokenizer in tokenizers(path):
        name = f"{type(tokenizer).__name__} of {path.name}"
        for row in items:
            got = tokenizer(row["tokens"], add_special_tokens=False)["input_ids"]
            # A slow llama tokenizer puts a blank of its own before the first token.
            got = got if tokenizer.is_fast else got[-1:]
            assert got == row["ids"], f"{name}: {row['tokens']} is {got} instead of {row['ids']}"
            assert tokenizer.convert_tokens_to_ids(row["tokens"]) == row["ids"][0], name
            assert tokenizer.decode(row["ids"]).strip() == row["tokens"], f"{name}: {tokenizer.decode(row['ids'])}"
        moved = {t: i for t, i in known.items() if tokenizer.convert_tokens_to_ids(t) != i}
        assert not moved, f"{name}: moved {moved}"
    for name in ("generation_config.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"):
        assert (base / name).exists() == (path / name).exists(), f"{path}: {name}"


def likelihoods(model, tokenizer, items, text=None):
    """log p(item token | prompt) of single-token items, as the engine computes them."""
    names = {row["item"]: row["tokens"] for row in items}
    text = text or TEMPLATE.replace("{{ history }}", " ".join(names[i] for i in HISTORY))
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


def check_texts(engine, run_dir, path, items, work):
    """What users type is text: the likelihoods after hostile queries are those after the same characters."""
    model = opened(path)
    # T5's fast tokenizer finds special tokens in texts that spell them; sentencepiece itself does not.
    slow = FOUR and (path / "spiece.model").exists()
    kind = transformers.T5Tokenizer if slow else transformers.AutoTokenizer
    tokenizer = kind.from_pretrained(path, split_special_tokens=True)
    worst = 0.0
    for query in QUERIES:
        if model.config.is_encoder_decoder and not slow and any(t in query for t in tokenizer.all_special_tokens):
            continue
        # T5's class of transformers 5 makes its own pre-tokenizer, which drops line ends; tokenizer.json has them.
        if model.config.is_encoder_decoder and not FOUR and "\n" in query:
            continue
        ranked = json.loads(run(engine, "rank", "--json", "--run", run_dir, "--task", "search", "--query", query,
                                "--top", 99, cwd=work))
        ours = {row["item"]: row["log_likelihood"] for row in ranked["items"]}
        text = SEARCH.replace("{{ query }}", query)
        theirs = likelihoods(model, tokenizer, items, text)
        worst = max(worst, *(abs(ours[i] - theirs[i]) for i in ours))
    return worst


def opened(path):
    config = transformers.AutoConfig.from_pretrained(path)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    # Eager: other implementations of attention leave out Gemma 2's caps.
    own = dict(dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    model, info = kind.from_pretrained(path, **own)
    strange = [k for k in info["missing_keys"] if "embed_tokens" not in k and "lm_head" not in k]
    assert not strange and not info["unexpected_keys"], info
    return model.eval()


def adapted(path, size):
    """The adapter over the base that it names itself, its embeddings resized."""
    base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert os.path.isabs(base), f"{path}: the base is {base}"
    model = opened(base)
    model.resize_token_embeddings(size, mean_resizing=False)
    return peft.PeftModel.from_pretrained(model, path).eval()


def check(engine, base, method, data, work):
    out = work / f"{base.name}-{method}"
    how = ["--preset", "published"] if method == "published" else ["--method", method]
    sets = ["gems.rank=4", "gems.refresh_every=4", "gems.refresh_window=2", "train.batch=8", "train.lr=0.01",
            "train.probe_batches=2", "train.validate_every=0", "data.item_token=<new_{}>", "data.eos=never",
            f'data.templates.rec="{TEMPLATE}"', f'data.templates.search="{SEARCH}"', "train.evaluate_before=false", "train.evaluate_after=false"]
    flags = [flag for s in sets for flag in ("--set", s)]
    # The base is given relative to where the engine runs, as users do.
    model = os.path.relpath(base, work)
    run(engine, "train", "--json", "--model", model, "--data", data, "--out", out, "--steps", 6, *how, *flags, cwd=work)
    ranked = json.loads(
        run(engine, "rank", "--json", "--run", out, "--history", ",".join(HISTORY), "--top", 99, cwd=work))
    ours = {row["item"]: row["log_likelihood"] for row in ranked["items"]}
    told = {}
    for form in ("merged", "peft"):
        to = work / f"{out.name}-{form}"
        answer = run(engine, "export", "--json", "--rank", "1.0", "--format", form, "--run", out, "--out", to, cwd=work)
        told[form] = json.loads(answer.splitlines()[-1])["largest_logit_difference"]
    items = [json.loads(line) for line in (work / f"{out.name}-merged" / "items.jsonl").read_text().splitlines()]
    size = json.loads((work / f"{out.name}-merged" / "config.json").read_text())["vocab_size"]
    differ = {}
    for form in ("merged", "peft"):
        path = work / f"{out.name}-{form}"
        check_tokens(path, items, base)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = opened(path) if form == "merged" else adapted(path, size)
        theirs = likelihoods(model, tokenizer, items)
        differ[form] = max(abs(ours[i] - theirs[i]) for i in ours)
    if method == METHODS[0]:
        differ["merged"] = max(differ["merged"], check_texts(engine, out, work / f"{out.name}-merged", items, work))
    return told, differ


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default=str(ROOT / "target/release/gems-engine"))
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "tests/golden/models")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tolerance", type=float, default=2e-4)
    args = parser.parse_args()
    engine = str(pathlib.Path(args.engine).resolve())
    worst = 0.0
    print(f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        world(work / "world")
        (work / "bases").mkdir()
        models = sorted(p.resolve() for p in args.models.iterdir() if p.is_dir()) + list(bases(work / "bases"))
        print(f"{'model':24}{'method':12}{'merged told':>14}{'merged':>10}{'peft told':>14}{'peft':>10}")
        for base in models:
            for method in args.methods.split(","):
                told, differ = check(engine, base, method, work / "world", work)
                # A logit that is off by d moves a log-likelihood by at most 2 d; what an export cannot hold it tells.
                worst = max(worst, *(differ[form] - 2 * told[form] for form in differ))
                row = [told["merged"], differ["merged"], told["peft"], differ["peft"]]
                print(f"{base.name:24}{method:12}{row[0]:14.1e}{row[1]:10.1e}{row[2]:14.1e}{row[3]:10.1e}", flush=True)
    if worst > args.tolerance:
        sys.exit(f"largest untold difference {worst:.1e}, more than {args.tolerance:.1e}")


if __name__ == "__main__":
    main()
