"""Makes the golden cases of model families: tiny random models of transformers, their logits, losses and gradients, and short
LoRA runs of PEFT. Writes below this directory (or the one given) and enters every file into manifest.json.

    python make_families.py [--to DIR] [--only NAME,..]      with transformers 4 and PEFT: everything
    python make_families.py --five [--to DIR]                with transformers 5: config.v5.json, and checks that nothing differs

Every row runs through the model alone, so that nothing depends on padding. Needs torch, transformers, peft, tokenizers.
"""

import argparse
import copy
import hashlib
import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched

import torch
import transformers
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).resolve().parent
ITEMS = 12
VOCABULARY = 272  # two rows more than the tokenizer has
PAD, EOS = 256, 257
SMALL = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None)
T5 = dict(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=20, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
          relative_attention_max_distance=12, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD, dropout_rate=0.0)
WINDOWS = ["sliding_attention", "full_attention"]
LONG = dict(type="longrope", short_factor=[1.0, 1.2, 1.5], long_factor=[1.1, 2.0, 4.0])

# name: model_type, fields beside those of all, fields that are taken out of config.json (their defaults must do)
FAMILIES = {
    "mistral_window": ("mistral", dict(SMALL, head_dim=8, sliding_window=4), []),
    "qwen2_window": ("qwen2", dict(SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1), []),
    "qwen3_defaults": ("qwen3", dict(SMALL, num_hidden_layers=1, tie_word_embeddings=True), ["head_dim"]),
    "llama_yarn": ("llama", dict(SMALL, head_dim=8, attention_bias=True, rope_scaling=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=16)), []),
    "llama_dynamic": ("llama", dict(SMALL, head_dim=8, max_position_embeddings=32, tie_word_embeddings=True,
                                    rope_scaling=dict(rope_type="dynamic", factor=3.0)), []),
    "phi3_window": ("phi3", dict(SMALL, num_attention_heads=4, num_key_value_heads=2, sliding_window=6), []),
    "phi3_longrope": ("phi3", dict(SMALL, original_max_position_embeddings=16, partial_rotary_factor=0.75,
                                   tie_word_embeddings=True, rope_scaling=LONG), []),
    "olmo2_linear": ("olmo2", dict(SMALL, num_attention_heads=4, num_key_value_heads=2,
                                   rope_scaling=dict(type="linear", factor=2.5)), []),
    "olmo3_yarn": ("olmo3", dict(SMALL, num_attention_heads=4, num_key_value_heads=4, sliding_window=4, rope_theta=5e5,
                                 layer_types=WINDOWS, rope_scaling=dict(
                                     rope_type="yarn", factor=2.0, original_max_position_embeddings=16)), []),
    "gemma2": ("gemma2", dict(SMALL, head_dim=8, query_pre_attn_scalar=6, sliding_window=4, attn_logit_softcapping=8.0,
                              final_logit_softcapping=15.0), ["layer_types"]),
    "gemma3_text": ("gemma3_text", dict(SMALL, num_hidden_layers=3, head_dim=8, query_pre_attn_scalar=6, sliding_window=4,
                                        sliding_window_pattern=3, rope_scaling=dict(rope_type="linear", factor=4.0)), []),
    "granite": ("granite", dict(SMALL, num_attention_heads=4, tie_word_embeddings=True, embedding_multiplier=3.0,
                                attention_multiplier=0.3, residual_multiplier=0.4, logits_scaling=2.0), []),
    "mt5": ("mt5", dict(T5), []),
    "umt5": ("umt5", dict(T5, num_decoder_layers=3), []),
}
# Prompts of unequal length; of both tasks one goes beyond the 16 tokens that the longrope model was made for, and in the
# model with a dynamic rotation one beyond its 32.
ROWS = [
    ("a <item_1> <item_7>:", "<item_3>", 0),
    ("<item_2> find b <item_9> ", "<item_5>", 1),
    ("seen <item_4> <item_0> next in:", "<item_8>", 0),
    ("q: red scarf, more ", "<item_10>", 1),
]
LONGEST = ("q: red scarf, and more of them than fit", "<item_6>", 1)


def rows_of(name):
    return [*ROWS[:3], LONGEST] if "dynamic" in name else ROWS


def tokenizer():
    """Bytes, padding, an end, and items; nothing is merged."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "</s>"])
    made.add_tokens([AddedToken(f"<item_{i}>", normalized=False, special=False) for i in range(ITEMS)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>",
                                                clean_up_tokenization_spaces=False)


def batch(words, texts, t5):
    """Right-padded tensors of some rows."""
    rows = []
    for prompt, target, task in texts:
        inputs, wanted = (words(text, add_special_tokens=False)["input_ids"] for text in (prompt, target))
        wanted = wanted + [EOS]
        rows.append((inputs, wanted, task) if t5 else (inputs + wanted, [-100] * len(inputs) + wanted, task))
    padded = lambda lists, fill: torch.tensor([x + [fill] * (max(map(len, lists)) - len(x)) for x in lists])
    ids = [row[0] for row in rows]
    return {"input_ids": padded(ids, PAD), "attention_mask": padded([[1] * len(x) for x in ids], 0),
            "labels": padded([row[1] for row in rows], -100), "task_ids": torch.tensor([row[2] for row in rows])}


def fresh(model):
    """Forgets what earlier texts did to rotations that grow with the length."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.inv_freq, module.max_seq_len_cached = module.original_inv_freq, module.original_max_seq_len


def forward(model, data):
    """Logits and losses of every label; what is padding stays 0."""
    t5, width = model.config.is_encoder_decoder, data["labels"].shape[1]
    dtype = next(model.parameters()).dtype
    count = len(data["labels"])
    logits = torch.zeros(count, width, VOCABULARY, dtype=dtype)
    nll = torch.zeros(count, width, dtype=dtype)
    rows = []
    for i in range(count):
        fresh(model)
        ids, labels = data["input_ids"][i][data["attention_mask"][i] > 0][None], data["labels"][i]
        if t5:
            labels = labels[labels >= 0]
            decoder = torch.cat([torch.tensor([PAD]), labels[:-1]])[None]
            out = model(input_ids=ids, decoder_input_ids=decoder, use_cache=False).logits[0]
            losses = -out.log_softmax(-1).gather(1, labels[:, None])[:, 0]
            at = torch.arange(len(labels))
        else:
            out = model(input_ids=ids, use_cache=False).logits[0]
            at = torch.arange(1, ids.shape[1])
            at = at[labels[at] >= 0]
            losses = -out[at - 1].log_softmax(-1).gather(1, labels[at][:, None])[:, 0]
        logits[i, :len(out)] = out.detach()
        nll[i, at] = losses.detach()
        rows.append(losses)
    return logits, nll, rows


def losses(rows, tasks):
    """The mean loss of all labels, and of each task's."""
    of = lambda kept: torch.cat([row for row, task in zip(rows, tasks) if task in kept])
    return {"whole": of({0, 1}), "rec": of({0}), "src": of({1})}


def gradients(model, data, named):
    """Every mean loss's value, count and gradient; a tied head's gradient is its table's."""
    found = {}
    for name in ("whole", "rec", "src"):
        model.zero_grad()
        loss = losses(forward(model, data)[2], data["task_ids"].tolist())[name]
        loss.mean().backward()
        found[name] = (loss.mean().item(), len(loss), {k: p.grad.clone() for k, p in named.items() if p.grad is not None})
    return found


def shake(model, seed):
    """Random weights with a larger spread than usual; norms around what they multiply by."""
    torch.manual_seed(seed)
    spread = 0.25 if model.config.model_type == "umt5" else 0.35  # its scores are not divided, its logits are
    for name, p in model.named_parameters():
        with torch.no_grad():
            p.copy_(torch.randn_like(p) * (0.15 if p.dim() == 1 else spread))
            if p.dim() == 1 and "bias" not in name and "gemma" not in model.config.model_type:
                p.add_(1.0)


def largest(a, b):
    return max(((a[k] - b[k]).abs().max().item() for k in a), default=0.0)


class Writer:
    """Files, and their lines in the manifest."""

    def __init__(self, to):
        self.to, self.path = to, to / "manifest.json"
        self.manifest = json.loads(self.path.read_text()) if self.path.exists() else {"files": {}}

    def enter(self, name, description, tolerance=None, tensors=None):
        data = (self.to / name).read_bytes()
        entry = {"description": description}
        entry |= {"tolerance": tolerance} if tolerance else {}
        entry |= {"tensors": {k: f"{str(t.dtype).split('.')[-1]}{list(t.shape)}" for k, t in tensors.items()}} if tensors else {}
        self.manifest["files"][name] = entry | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def tensors(self, name, tensors, description, tolerance=None):
        (self.to / name).parent.mkdir(parents=True, exist_ok=True)
        tensors = {k: t.detach().clone().contiguous() for k, t in tensors.items()}
        save_file(tensors, self.to / name, metadata={"format": "pt"})
        self.enter(name, description, tolerance, tensors)

    def json(self, name, value, description, tolerance=None):
        (self.to / name).parent.mkdir(parents=True, exist_ok=True)
        (self.to / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        self.enter(name, description, tolerance)

    def close(self):
        self.manifest["files"] = dict(sorted(self.manifest["files"].items()))
        self.path.write_text(json.dumps(self.manifest, indent=1) + "\n")


def stored(model):
    """Parameters by the name under which they are stored."""
    return dict(model.named_parameters())


def model_case(out, name, model, words, left_out):
    folder = out.to / "models" / name
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for field in left_out:
        config.pop(field)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for file in sorted(folder.iterdir()):
        out.enter(f"models/{name}/{file.name}", "as transformers saves it", tensors=load_file(file) if file.suffix == ".safetensors" else None)

    texts = rows_of(name)
    data = batch(words, texts, model.config.is_encoder_decoder)
    at = f"model_cases/{name}"
    out.tensors(f"{at}/batch.safetensors", data, "right-padded rows; labels -100 are ignored; task_ids 0=rec 1=search")
    logits, nll, _ = forward(model, data)
    exact = copy.deepcopy(model).double()
    found, twice = gradients(model, data, stored(model)), gradients(exact, data, stored(exact))
    exact_logits = forward(exact, data)[0]
    error = lambda got, want: max(2e-5, 20 * largest({0: got.double()}, {0: want}))
    out.tensors(f"{at}/outputs.safetensors", {"logits": logits, "nll": nll},
                "logits of every row alone, and the loss of every label at its place", {"rtol": 1e-4, "atol": error(logits, exact_logits)})
    case = {"rows": [dict(prompt=p, target=t, task=k) for p, t, k in texts], "float64_max_abs_diff": {}}
    for part, (loss, count, grads) in found.items():
        off = largest({k: g.double() for k, g in grads.items()}, twice[part][2])
        case |= {f"loss_{part}": loss, f"num_target_tokens_{part}": count}
        case["float64_max_abs_diff"][f"grads_{part}"] = off
        out.tensors(f"{at}/grads_{part}.safetensors", grads, f"gradient of the {part} mean loss for every stored weight",
                    {"rtol": 1e-3, "atol": max(1e-5, 20 * off)})
    out.json(f"{at}/case.json", case, "mean losses over target tokens, counts, source text", {"loss_atol": 2e-5})
    texts = [prompt for prompt, _, _ in texts] + ["<item_3><item_12>", "x<item_3>y", " é😀\n", ""]
    decode = lambda ids, skip: words.decode(ids, skip_special_tokens=skip)
    plain = lambda text, special: words(text, add_special_tokens=special)["input_ids"]
    out.json(f"{at}/tokenization.json", {"vocab_size_tokenizer": len(words), "vocab_size_model": VOCABULARY, "cases": [
        dict(text=t, ids=plain(t, True), ids_no_special=plain(t, False), decoded=decode(plain(t, False), False),
             decoded_skip_special=decode(plain(t, False), True)) for t in texts]}, "text to ids and back; exact match expected")
    return data


def lora_case(out, name, data, seed, open_again=None, in_doubles=lambda tuned: copy.deepcopy(tuned).double()):
    import peft

    base = transformers.AutoModelForSeq2SeqLM if "t5" in name else transformers.AutoModelForCausalLM
    folder, at, (r, alpha) = out.to / "models" / name, f"lora/{name}", (2, 3)
    plainly = lambda: base.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = (open_again or plainly)().eval()
    targets = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n})
    task = "SEQ_2_SEQ_LM" if "t5" in name else "CAUSAL_LM"
    config = peft.LoraConfig(task_type=task, r=r, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)
    tuned = peft.get_peft_model(model, config).eval()
    torch.manual_seed(seed)
    trained = {n.replace(".default", ""): p for n, p in tuned.named_parameters() if "lora_" in n}
    with torch.no_grad():
        [p.copy_(torch.randn_like(p) * 0.2) for p in trained.values()]
    exact = in_doubles(tuned)
    exactly = {n.replace(".default", ""): p for n, p in exact.named_parameters() if "lora_" in n}
    tuned.peft_config["default"].base_model_name_or_path = f"models/{name}"
    tuned.save_pretrained(out.to / at / "adapter")
    (out.to / at / "adapter" / "README.md").unlink(missing_ok=True)
    out.enter(f"{at}/adapter/adapter_config.json", "PEFT adapter settings")
    out.enter(f"{at}/adapter/adapter_model.safetensors", "PEFT adapter weights", tensors=load_file(out.to / at / "adapter/adapter_model.safetensors"))
    logits, _, rows = forward(tuned, data)
    found, twice = gradients(tuned, data, trained), gradients(exact, data, exactly)
    off = max(largest({k: g.double() for k, g in found[p][2].items()}, twice[p][2]) for p in found)
    tensors = {f"batch.{k}": v for k, v in data.items()}
    tensors |= {f"grad_{part}.{k}": g for part in found for k, g in found[part][2].items()}
    out.tensors(f"{at}/outputs.safetensors", tensors, "batch, gradients of every A and B for the three mean losses",
                {"grads": {"rtol": 1e-3, "atol": max(2e-5, 20 * off)}})
    steps = dict(lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    optimizer, seen = torch.optim.AdamW(trained.values(), **steps), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = losses(forward(tuned, data)[2], data["task_ids"].tolist())["whole"].mean()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    out.tensors(f"{at}/trained_adapter.safetensors", trained, "A and B after the AdamW steps on the whole loss", {"atol": 5e-5})
    case = dict(model=name, r=r, alpha=alpha, rslora=False, scaling=alpha / r, targets=targets, float64_max_abs_diff={"grads": off},
                training=dict(steps, optimizer="torch.optim.AdamW", steps=3, losses=seen))
    case |= {f"loss_{part}": found[part][0] for part in found}
    out.json(f"{at}/case.json", case, "adapter settings and losses", {"loss_atol": 2e-5})


def make(out, only):
    words = tokenizer()
    for seed, (name, (kind, fields, left_out)) in enumerate(FAMILIES.items()):
        if only and name not in only:
            continue
        config = transformers.AutoConfig.for_model(kind, attn_implementation="eager", **copy.deepcopy(fields))
        base = transformers.AutoModelForSeq2SeqLM if "t5" in kind else transformers.AutoModelForCausalLM
        model = base.from_config(config).eval()
        shake(model, 100 + seed)
        data = model_case(out, name, model, words, left_out)
        lora_case(out, name, data, 200 + seed)
        print(name, sum(f.stat().st_size for part in ("models", "model_cases", "lora") for f in (out.to / part / name).rglob("*") if f.is_file()))


def five(out, only):
    """The same configurations as transformers 5 spells them; everything must be as 4 had it."""
    for name in FAMILIES:
        if only and name not in only:
            continue
        folder, at = out.to / "models" / name, out.to / "model_cases" / name
        base = transformers.AutoModelForSeq2SeqLM if "t5" in name else transformers.AutoModelForCausalLM
        model = base.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        config = json.loads(model.config.to_json_string(use_diff=True))
        (folder / "config.v5.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        out.enter(f"models/{name}/config.v5.json", "the same configuration as transformers 5 writes it")
        data, want = load_file(at / "batch.safetensors"), load_file(at / "outputs.safetensors")
        logits = forward(model, data)[0]
        grads = gradients(model, data, stored(model))["whole"][2]
        known = load_file(at / "grads_whole.safetensors")
        differ = (largest({0: logits}, {0: want["logits"]}), largest(known, grads))
        print(f"{name:20} logits differ by {differ[0]:.1e}, gradients by {differ[1]:.1e}")
        if max(differ) > 1e-4:
            sys.exit(f"{name}: transformers {transformers.__version__} computes something else")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=pathlib.Path, default=HERE)
    parser.add_argument("--only", default="")
    parser.add_argument("--five", action="store_true")
    arguments = parser.parse_args()
    writer = Writer(arguments.to)
    (five if arguments.five else make)(writer, [n for n in arguments.only.split(",") if n])
    writer.close()


if __name__ == "__main__":
    main()
