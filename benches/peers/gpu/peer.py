"""One contender in PyTorch on one GPU (or the CPU): a training step, a refresh, and the peak of memory.

    python3 peer.py --which two-pass,lora --shape qwen2.5-0.5b --tokens 8192 --length 512 --rank 16

three-pass      the published GEMS procedure: a forward and backward pass on the whole batch and on each task's part,
                full gradients, dense SVDs at a refresh, Adam in each subspace (arXiv 2601.09496, from its formulas)
                three-pass-compiled   the same under torch.compile, for the batch's and the tasks' shapes
two-pass        the same method as fast as PyTorch alone makes it: one pass a task, coordinates dY'(X A') taken inside
                the backward pass so that no full gradient exists, randomised SVD at a refresh
lora            PEFT LoRA with fused AdamW          lora-compiled   the same under torch.compile
galore          GaLore, dense SVD at a refresh      galore-lowrank  the same with torch.svd_lowrank

Weights are random, of the shape's config.json; two tasks have half the sequences each, the last three tokens of a
sequence are labels. With --no-refresh bases are random, for the time of a step alone: the dense SVDs of a refresh take
minutes. Nothing is downloaded. Prints a line of JSON a contender.
"""

import argparse
import gc
import json
import pathlib
import resource
import statistics
import sys
import time

import torch
import transformers

LABELS = 3
TARGETS = {
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "t5": ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"],
}
OVERSAMPLE = 8


def configuration(name):
    """The shape's config.json: a file, or a name among the engine's shapes."""
    here = pathlib.Path(__file__).resolve().parent
    places = [pathlib.Path(name), here / "shapes" / f"{name}.json", here / f"../../../src/model/shapes/{name}.json"]
    for place in places:
        if place.is_file():
            return json.loads(place.read_text())
    sys.exit(f"no shape {name}: looked at {', '.join(map(str, places))}")


def build(args):
    raw = configuration(args.shape)
    family = raw.pop("model_type")
    config = transformers.AutoConfig.for_model(family, **raw)
    kind = transformers.AutoModelForSeq2SeqLM if family == "t5" else transformers.AutoModelForCausalLM
    torch.manual_seed(1)
    torch.set_default_dtype(args.dtype)
    with torch.device(args.device):
        try:
            model = kind.from_config(config, attn_implementation="sdpa")
        except ValueError:  # T5 before transformers 5
            model = kind.from_config(config, attn_implementation="eager")
    torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    model.requires_grad_(False)
    return model.train(), TARGETS[family], family == "t5"


def batches(args, model, seq2seq):
    """The whole batch, and each task's half of it."""
    sequences = args.tokens // args.length
    tokens = torch.randint(2, model.config.vocab_size, (sequences, args.length), generator=torch.Generator().manual_seed(1))
    tokens = tokens.to(args.device)
    if seq2seq:
        whole = {"input_ids": tokens, "labels": tokens[:, :LABELS].contiguous()}
    else:
        labels = torch.full_like(tokens, -100)
        labels[:, -LABELS:] = tokens[:, -LABELS:]
        whole = {"input_ids": tokens, "labels": labels}
    half = sequences // 2
    return whole, [{k: v[:half] for k, v in whole.items()}, {k: v[half:] for k, v in whole.items()}]


def linears(model, targets):
    found = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name.split(".")[-1] in targets]
    assert found, "no target layers"
    return found


def adam(state, gradient, t, lr):
    """The change of a parameter with this gradient (no weight decay)."""
    if not state:
        state["m"], state["v"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    state["m"].lerp_(gradient, 0.1)
    state["v"].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    correction = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
    return state["m"] / (state["v"].sqrt() + 1e-8) * -correction


def right_space(gradient, rank, how):
    """An orthonormal basis [rank x n] of the gradient's dominant row space; or, `random`, any."""
    if how == "random":
        return torch.linalg.qr(torch.randn(gradient.shape[1], rank, device=gradient.device))[0].T.contiguous()
    gradient = gradient.float()
    if how == "dense":
        return torch.linalg.svd(gradient, full_matrices=False).Vh[:rank].contiguous()
    q = min(rank + OVERSAMPLE, *gradient.shape)
    return torch.svd_lowrank(gradient, q=q, niter=1)[2][:, :rank].T.contiguous()


def compiled(model, args):
    return torch.compile(model, dynamic=False) if args.which.endswith("-compiled") else model


class ThreePass:
    def __init__(self, model, targets, whole, halves, args):
        self.model, self.parts, self.lr = compiled(model, args), [whole, *halves], args.lr
        self.bases_by = "random" if args.no_refresh else "dense"
        self.weights = [m.weight.requires_grad_(True) for m in linears(model, targets)]
        self.ranks = [args.rank, args.rank // 2, args.rank // 2]
        self.bases = [[None] * 3 for _ in self.weights]
        self.states = [[{} for _ in range(3)] for _ in self.weights]
        self.t = 0

    def step(self, refresh):
        self.t += 1
        gradients = []
        for part in self.parts:
            self.model.zero_grad(set_to_none=True)
            self.model(**part).loss.backward()
            gradients.append([w.grad for w in self.weights])
        with torch.no_grad():
            for i, weight in enumerate(self.weights):
                change = 0
                for s, rank in enumerate(self.ranks):
                    gradient = gradients[s][i].float()
                    if refresh or self.bases[i][s] is None:
                        self.bases[i][s] = right_space(gradient, rank, self.bases_by)
                    basis = self.bases[i][s]
                    gate = 1.0 if s == 0 else 0.5
                    change = change + gate * (adam(self.states[i][s], gradient @ basis.T, self.t, self.lr) @ basis)
                weight.add_(change.to(weight.dtype))
        self.model.zero_grad(set_to_none=True)


class Tapped(torch.autograd.Function):
    """x W', whose backward pass keeps the task's coordinates (or, before a refresh, the full gradient)."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.linear.weight, layer.linear.bias)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        layer = ctx.layer
        flat_x, flat_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        layer.observe(flat_x, flat_dy)
        return dy @ layer.linear.weight, None


class TappedLinear(torch.nn.Module):
    def __init__(self, linear, rank, run):
        super().__init__()
        self.linear, self.run = linear, run
        self.ranks = [rank, rank // 2, rank // 2]
        self.bases, self.states = None, [{} for _ in range(3)]
        self.clear()

    # What transformers' T5 asks a linear layer for.
    @property
    def weight(self):
        return self.linear.weight

    def clear(self):
        self.coordinates, self.full = [None] * 3, [None] * 2

    def forward(self, x):
        return Tapped.apply(x if x.requires_grad else x.detach().requires_grad_(), self)

    def observe(self, x, dy):
        task = self.run["task"]
        if self.run["full"]:
            self.full[task] = dy.T @ x
        else:
            bases = torch.cat([self.bases[0], self.bases[1 + task]]).to(x.dtype)
            both = dy.T @ (x @ bases.T)
            shared, own = both[:, : self.ranks[0]], both[:, self.ranks[0] :]
            self.coordinates[0] = shared if self.coordinates[0] is None else self.coordinates[0] + shared
            self.coordinates[1 + task] = own

    def refresh(self):
        shared = self.full[0] + self.full[1]
        spaces = [right_space(g, r, "sketch") for g, r in zip([shared, *self.full], self.ranks)]
        self.bases = spaces
        gradients = [shared, *self.full]
        self.coordinates = [g.float() @ basis.T for g, basis in zip(gradients, spaces)]

    def update(self, t, lr):
        steps = [adam(s, c.float(), t, lr) for s, c in zip(self.states, self.coordinates)]
        gates = torch.cat([steps[0], 0.5 * steps[1], 0.5 * steps[2]], dim=1)
        self.linear.weight.add_((gates @ torch.cat(self.bases)).to(self.linear.weight.dtype))
        self.clear()


class TwoPass:
    def __init__(self, model, targets, whole, halves, args):
        self.model, self.halves, self.lr = model, halves, args.lr
        self.run = {"task": 0, "full": True}
        self.layers = []
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.Linear) and name in targets:
                    tapped = TappedLinear(child, args.rank, self.run)
                    setattr(module, name, tapped)
                    self.layers.append(tapped)
        # Every layer's input gradient is wanted from the first layer on.
        model.get_input_embeddings().register_forward_hook(lambda m, i, o: o.requires_grad_())
        self.t = 0

    def step(self, refresh):
        self.t += 1
        self.run["full"] = refresh or self.layers[0].bases is None
        for task, half in enumerate(self.halves):
            self.run["task"] = task
            (self.model(**half).loss / 2).backward()
        with torch.no_grad():
            for layer in self.layers:
                if self.run["full"]:
                    layer.refresh()
                layer.update(self.t, self.lr)


class Lora:
    def __init__(self, model, targets, whole, halves, args):
        import peft

        kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
        settings = peft.LoraConfig(r=args.rank, lora_alpha=args.rank, lora_dropout=0.0, target_modules=targets, task_type=kind)
        self.model, self.whole = peft.get_peft_model(model, settings), whole
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=args.lr, fused=args.device != "cpu")
        self.model = compiled(self.model, args)

    def step(self, refresh):
        self.model(**self.whole).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Galore:
    """Each weight is stepped as soon as its gradient is there, and the gradient is freed."""

    def __init__(self, model, targets, whole, halves, args):
        self.model, self.whole, self.args = model, whole, args
        self.renew, self.t = True, 0
        self.bases_by = "random" if args.no_refresh else "dense" if args.which == "galore" else "sketch"
        for module in linears(model, targets):
            state = {"basis": None, "adam": {}}
            module.weight.requires_grad_(True)
            module.weight.register_post_accumulate_grad_hook(lambda weight, state=state: self.update(weight, state))

    @torch.no_grad()
    def update(self, weight, state):
        gradient = weight.grad
        weight.grad = None
        if self.renew or state["basis"] is None:
            state["basis"] = right_space(gradient, self.args.rank, self.bases_by)
        basis = state["basis"]
        change = adam(state["adam"], gradient.float() @ basis.T, self.t, self.args.lr) @ basis
        weight.add_(change.to(weight.dtype))

    def step(self, refresh):
        self.t += 1
        self.renew = refresh
        self.model(**self.whole).loss.backward()


CONTENDERS = {
    "three-pass": ThreePass,
    "three-pass-compiled": ThreePass,
    "two-pass": TwoPass,
    "lora": Lora,
    "lora-compiled": Lora,
    "galore": Galore,
    "galore-lowrank": Galore,
}


def measured(args):
    """What one contender took."""
    model, targets, seq2seq = build(args)
    whole, halves = batches(args, model, seq2seq)
    contender = CONTENDERS[args.which](model, targets, whole, halves, args)

    def timed(refresh):
        if args.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        contender.step(refresh)
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = timed(True)
    for _ in range(args.warmup):
        timed(False)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = [timed(False) for _ in range(args.steps)]
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = statistics.median(steps)
    renews = not args.which.startswith("lora") and not args.no_refresh
    refresh = timed(True) - step if renews else None
    rows = args.tokens // args.length * (args.length + (LABELS if seq2seq else 0))
    return {
        "peer": args.which,
        "what": args.shape,
        "tokens": rows,
        "step_ms": step * 1e3,
        "steps_ms": [s * 1e3 for s in steps],
        "tokens_per_s": rows / step,
        "refresh_ms": None if refresh is None else refresh * 1e3,
        "first_step_ms": first * 1e3,
        "peak_memory_bytes": peak,
        "rank": args.rank,
        "dtype": str(args.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--which", required=True, help="one or several of: " + ", ".join(CONTENDERS))
    parser.add_argument("--shape", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, choices=["bfloat16", "float32"])
    parser.add_argument("--no-refresh", action="store_true")
    args = parser.parse_args()
    args.dtype = getattr(torch, args.dtype or ("bfloat16" if args.device == "cuda" else "float32"))
    contenders = args.which.split(",")
    if not set(contenders) <= set(CONTENDERS):
        parser.error(f"--which takes {', '.join(CONTENDERS)}")
    for args.which in contenders:
        print(json.dumps(measured(args)), flush=True)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
