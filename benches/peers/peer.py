"""One contender in PyTorch on the CPU: reads "step" lines, does one step each, answers with JSON.

three-pass   the published GEMS procedure: one forward pass on the whole batch and one on each task's part, three
             backward passes with full gradients, three dense SVDs a matrix at a refresh, Adam in each subspace
             (arXiv 2601.09496), written from the paper's formulas. Only the target matrices are trained.
lora         PEFT LoRA on the same matrices with torch.optim.AdamW, one pass over the whole batch.
             Either with -compiled behind it: the model goes through torch.compile.

--bf16: products in bf16 by torch.autocast, over weights that are f32 (three-pass, which changes them) or bf16 (lora).
"""

import argparse
import json
import resource
import sys
import time

import torch
import transformers

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "t5": ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"],
}


def load(path, method, bf16):
    config = transformers.AutoConfig.from_pretrained(path)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    weights = torch.bfloat16 if bf16 and method.startswith("lora") else torch.float32
    model = kind.from_pretrained(path, dtype=weights, attn_implementation="eager" if config.is_encoder_decoder else "sdpa")
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if bf16:
        model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    return model.train(), TARGETS[config.model_type]


def inputs(path):
    batch = json.load(open(path))
    tensors = {"input_ids": torch.tensor(batch["input_ids"]), "labels": torch.tensor(batch["labels"])}
    return tensors, torch.tensor(batch["tasks"])


class ThreePass:
    """The published step: subspaces `whole`, `0`, `1` of ranks r, r/2, r/2 for every target matrix."""

    def __init__(self, model, targets, batch, tasks, rank, refresh_every):
        self.model = model
        self.weights = [
            m.weight for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and name.split(".")[-1] in targets
        ]
        for weight in self.weights:
            weight.requires_grad_(True)
        parts = [torch.ones_like(tasks, dtype=torch.bool)] + [tasks == t for t in (0, 1)]
        self.batches = [{k: v[part] for k, v in batch.items()} for part in parts]
        self.ranks = [rank, rank // 2, rank // 2]
        self.gates = [1.0, 0.5, 0.5]
        self.refresh_every = refresh_every
        self.states = [[{} for _ in self.ranks] for _ in self.weights]
        self.steps = 0

    def step(self, lr=1e-4):
        gradients, losses = [], []
        for part in self.batches:
            self.model.zero_grad(set_to_none=True)
            loss = self.model(**part).loss
            loss.backward()
            losses.append(loss.item())
            gradients.append([w.grad for w in self.weights])
        refresh = self.steps % self.refresh_every == 0
        self.steps += 1
        correction = (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        with torch.no_grad():
            for i, weight in enumerate(self.weights):
                direction = torch.zeros_like(weight)
                for s, rank in enumerate(self.ranks):
                    direction += self.gates[s] * self.subspace(self.states[i][s], gradients[s][i], rank, refresh)
                weight -= lr * correction * direction
        return losses[0]

    @staticmethod
    def subspace(state, gradient, rank, refresh):
        right = gradient.shape[0] >= gradient.shape[1]
        if refresh:
            u, _, v = torch.linalg.svd(gradient, full_matrices=False)
            state["basis"] = v[:rank].clone() if right else u[:, :rank].clone()
        basis = state["basis"]
        r = gradient @ basis.T if right else basis.T @ gradient
        if "m" not in state:
            state["m"], state["v"] = torch.zeros_like(r), torch.zeros_like(r)
        m = state["m"].mul_(0.9).add_(r, alpha=0.1)
        v = state["v"].mul_(0.999).addcmul_(r, r, value=0.001)
        n = m / (v.sqrt() + 1e-6)
        return n @ basis if right else basis @ n


class Lora:
    def __init__(self, model, targets, batch, rank):
        import peft

        kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, task_type=kind)
        self.model, self.batch = peft.get_peft_model(model, config), batch
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main():
    parser = argparse.ArgumentParser()
    for name in ("--model", "--batch", "--method"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--refresh-every", type=int, default=200)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, targets = load(args.model, args.method, args.bf16)
    batch, tasks = inputs(args.batch)
    if args.method.startswith("three-pass"):
        contender = ThreePass(model, targets, batch, tasks, args.rank, args.refresh_every)
    else:
        contender = Lora(model, targets, batch, args.rank)
    if args.method.endswith("-compiled"):
        contender.model = torch.compile(contender.model)
    for _ in sys.stdin:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        loss = contender.step()
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"loss": loss, "seconds": time.perf_counter() - start, "cpu": cpu}), flush=True)


main()
