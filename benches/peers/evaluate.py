"""The engine's ranking of test queries beside the published loop and a batched loop in PyTorch, on the same checkpoint.

Every query is a history (and a search text) with a target and 99 random negatives, ranked by the conditional
log-likelihood of the items' tokens, each item one token.

published   one query at a time, as the published evaluation does it: transformers' beam search with 20 beams over the
            trie of the query's candidates, item and end of sequence, two steps; its answer is the best 20.
batched     what a careful user of PyTorch writes: queries sorted by length, padded, one forward pass a batch, the
            log-softmax of one position, the candidates' entries.
engine      what `gems-engine evaluate` does with the same records.

    cargo build --release --example peers-ranker
    python benches/peers/evaluate.py --shape t5-small llama-tiny llama-60m

All include the tokenizer and exclude loading. Contenders are processes that wait between rounds and take turns, so load
on the machine falls on all alike; figures are medians over rounds, and the best round. Prompts must be the same tokens;
the largest difference of any score is printed, and how many queries are ranked in the same order. The published loop gets
fewer queries a round than the others (--published-queries): it is the slow one. Its scores are compared for the
item's token, without the end of sequence.
"""

import argparse
import json
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHAPES = [ROOT / "benches" / "shapes", ROOT / "src" / "model" / "shapes", ROOT / "peers" / "shapes"]
BEAMS = 20
NEGATIVES = 99
# A larger difference of scores in f32 is a mistake; in bf16 differences are printed only.
TOLERANCE = 1e-3


def prompt(row):
    """The engine's prompts in the manner of the published method."""
    history = " ".join(f"<item_{i}>" for i in row["history"][-50:])
    told = f"A user interacted with these items, oldest first: {history}."
    ask = "Which item will the user click next?"
    return f"{told} The user now searches for: {row['query']}. {ask}" if "query" in row else f"{told} {ask}"


def world(args, directory):
    """A made-up world whose test records have negatives."""
    command = [args.engine_cli, "prepare", "synth", "--users", str(args.queries), "--items", str(args.items)]
    subprocess.run([*command, "--seed", "1", "--json", "--overwrite", "--out", directory], check=True, stdout=subprocess.DEVNULL)
    dice = random.Random(1)
    rows = [json.loads(line) for line in (directory / "test.jsonl").open()][: args.queries]
    for row in rows:
        others = dice.sample(range(args.items), NEGATIVES + len(row["target"]))
        row["negatives"] = [f"i{i}" for i in others if f"i{i}" not in row["target"]][:NEGATIVES]
    (directory / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def checkpoint(args, shape, directory):
    """Random weights of a shape, and a small tokenizer with a token for every item."""
    import torch
    import transformers

    torch.manual_seed(0)
    files = [place / f"{shape}.json" for place in SHAPES if (place / f"{shape}.json").exists()]
    if not files:
        sys.exit(f"there is no shape {shape} in {', '.join(map(str, SHAPES))}")
    shape = json.loads(files[0].read_text())
    small = ROOT / "tests" / "golden" / "models" / ("t5_v10" if shape.get("is_encoder_decoder") else "llama_tied")
    tokenizer = transformers.AutoTokenizer.from_pretrained(small)
    tokenizer.add_tokens([transformers.AddedToken(f"<item_i{i}>", normalized=False) for i in range(args.items)])
    tokenizer.save_pretrained(directory)
    shape["vocab_size"] = max(shape["vocab_size"], -(-len(tokenizer) // 64) * 64)
    config = transformers.AutoConfig.for_model(**shape)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    kind.from_config(config).float().save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(shape))
    (directory / "generation_config.json").unlink(missing_ok=True)


class Peer:
    """A contender in PyTorch."""

    def __init__(self, args):
        import torch
        import transformers

        torch.set_num_threads(args.threads)
        self.torch, self.args = torch, args
        transformers.logging.set_verbosity_error()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        config = transformers.AutoConfig.from_pretrained(args.model)
        self.encodes = config.is_encoder_decoder
        kind = transformers.AutoModelForSeq2SeqLM if self.encodes else transformers.AutoModelForCausalLM
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
        self.model = kind.from_pretrained(args.model, dtype=dtype).to(args.device).eval()
        self.rows = [json.loads(line) for line in (args.data / "test.jsonl").open()][: args.queries]

    def candidates(self, row):
        """Item numbers in order, and their tokens."""
        items = sorted({int(i[1:]) for i in row["negatives"] + row["target"]})
        return items, self.tokenizer.convert_tokens_to_ids([f"<item_i{i}>" for i in items])

    def published(self):
        return [self.beam_search(row) for row in self.rows]

    def beam_search(self, row):
        inputs = self.tokenizer(prompt(row), return_tensors="pt", return_token_type_ids=False).to(self.args.device)
        items, tokens = self.candidates(row)
        end, trie = self.tokenizer.eos_token_id, {}
        for token in tokens:
            trie.setdefault(token, {})[end] = {}
        skipped = 1 if self.encodes else inputs["input_ids"].shape[1]

        def allowed(_, sentence):
            node = trie
            for token in sentence.tolist()[skipped:]:
                node = node.get(token, {})
            return list(node) or [end]

        # The checkpoint's own word on how to generate is no part of this.
        found = self.model.generate(
            **inputs, num_beams=BEAMS, num_return_sequences=BEAMS, max_new_tokens=2, do_sample=False, use_cache=True,
            prefix_allowed_tokens_fn=allowed, eos_token_id=end, pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True, output_scores=True,
        )
        scores = self.model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)[:, 0].tolist()
        back = dict(zip(tokens, items))
        ranked = [(back[t], s) for t, s in zip(found.sequences[:, skipped].tolist(), scores)]
        return inputs["input_ids"][0].tolist(), sorted(ranked, key=lambda pair: (-pair[1], pair[0]))

    def batched(self):
        torch, tokenizer = self.torch, self.tokenizer
        tokenizer.padding_side = "right" if self.encodes else "left"
        prompts = tokenizer([prompt(row) for row in self.rows])["input_ids"]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [None] * len(prompts)
        for start in range(0, len(order), self.args.batch):
            part = order[start : start + self.args.batch]
            inputs = tokenizer.pad({"input_ids": [prompts[i] for i in part]}, return_tensors="pt").to(self.args.device)
            if self.encodes:
                first = torch.full((len(part), 1), self.model.config.decoder_start_token_id, device=self.args.device)
                logits = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                                    decoder_input_ids=first, use_cache=False).logits[:, -1]
            else:
                positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
                logits = self.model(**inputs, position_ids=positions, logits_to_keep=1, use_cache=False).logits[:, -1]
            all_scores = torch.log_softmax(logits.float(), -1)
            for i, scores in zip(part, all_scores):
                items, tokens = self.candidates(self.rows[i])
                pairs = zip(items, scores[torch.tensor(tokens, device=scores.device)].tolist())
                answers[i] = (prompts[i], sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        return answers

    def serve(self):
        kept = False
        with self.torch.inference_mode():
            for _ in sys.stdin:
                start, before = time.perf_counter(), time.process_time()
                answers = getattr(self, self.args.run)()
                figures = {"queries": len(answers), "seconds": time.perf_counter() - start, "cpu": time.process_time() - before}
                if not kept:
                    lists = [{"prompt": p, "items": [[f"i{i}", s] for i, s in items]} for p, items in answers]
                    self.args.scores.write_text(json.dumps(lists))
                    kept = True
                print(json.dumps(figures), flush=True)


class Contender:
    def __init__(self, name, args, model, data):
        self.scores = data / f"scores-{name}.json"
        options = ["--model", model, "--data", data, "--scores", self.scores, "--device", args.device, "--threads", args.threads]
        if name == "engine":
            program = [args.engine]
        else:
            queries = args.published_queries if name == "published" else args.queries
            program = [sys.executable, __file__, "--run", name, "--queries", queries, "--batch", args.batch]
        command = [str(c) for c in program + options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.rounds = []

    def round(self):
        self.process.stdin.write("rank\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{' '.join(map(str, self.process.args))}: exit code {self.process.wait()}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def rate(self, key, middle=statistics.median):
        return middle([r["queries"] / r[key] for r in self.rounds])


def agreement(theirs, ours):
    """Prompts are equal; the largest difference of a score, and queries with the same order as far as the peer's goes."""
    worst, alike = 0.0, 0
    for a, b in zip(theirs, ours):
        assert a["prompt"] == b["prompt"], f"another prompt: {a['prompt']} and {b['prompt']}"
        assert len(b["items"]) == NEGATIVES + 1, f"{len(b['items'])} candidates"
        scores = dict(b["items"])
        worst = max(worst, max(abs(score - scores[item]) for item, score in a["items"]))
        alike += [item for item, _ in a["items"]] == [item for item, _ in b["items"][: len(a["items"])]]
    return worst, alike


def measure(shape, args):
    work = args.work / shape
    shutil.rmtree(work, ignore_errors=True)
    model, data = work / "model", work / "data"
    model.mkdir(parents=True)
    checkpoint(args, shape, model)
    world(args, data)
    contenders = {name: Contender(name, args, model, data) for name in ("engine", "published", "batched")}
    for contender in contenders.values():
        contender.round()  # the first is not counted: libraries start
    for _ in range(args.rounds):
        for contender in contenders.values():
            time.sleep(0.05)  # a peer's threads stop spinning
            contender.rounds.append(contender.round())
    answers = {name: json.loads(c.scores.read_text()) for name, c in contenders.items()}
    tokens = statistics.mean(len(a["prompt"]) for a in answers["engine"])
    print(f"\n{shape} on {args.device}: {args.queries} queries of {tokens:.0f} tokens on average, {NEGATIVES + 1} candidates,"
          f" {args.threads} threads, {args.rounds} rounds")
    ours = contenders["engine"]
    print(f"  {'queries/s':>22}{'at best':>10}{'a CPU s':>10}   the engine's over it: queries/s, at best, a CPU s")
    for name, c in contenders.items():
        kinds = [("seconds", statistics.median), ("seconds", max), ("cpu", statistics.median)]
        rates = [c.rate(*kind) for kind in kinds]
        over = [ours.rate(*kind) / rate for kind, rate in zip(kinds, rates)]
        print(f"  {name:12}" + "".join(f"{rate:10.1f}" for rate in rates) + "   " + "".join(f"{ratio:7.1f} x" for ratio in over))
        c.close()
    for name in ("published", "batched"):
        worst, alike = agreement(answers[name], answers["engine"])
        print(f"  {name}: {len(answers[name])} queries, largest difference of a score {worst:.1e}, {alike} ranked in the same order"
              f" ({len(answers[name][0]['items'])} places)")
        if args.device == "cpu" and worst > TOLERANCE:
            sys.exit(f"{shape}: the engine's scores are not those of the {name} loop")
    rate = {name: c.rate("seconds") for name, c in contenders.items()}
    print(f"{shape}: engine over published {rate['engine'] / rate['published']:.1f} x, over batched {rate['engine'] / rate['batched']:.1f} x queries/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["t5-small", "llama-tiny", "llama-60m"])
    parser.add_argument("--engine", default=ROOT / "target/release/examples/peers-ranker")
    parser.add_argument("--engine-cli", default=ROOT / "target/release/gems-engine")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "peers" / "evaluate")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--published-queries", type=int, default=16)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32, help="queries of a batch of the batched peer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    for name in ("--run", "--model", "--data", "--scores"):
        parser.add_argument(name, type=str if name == "--run" else pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        Peer(args).serve()
    else:
        for shape in args.shape:
            measure(shape, args)


main()
