"""Makes tests/golden/knowledge.json: five steps of GEMS on a tiny llama in float64, with the knowledge metric, step factors,
the pull and rehearsal, by autograd and the formulas of docs/forgetting.md. Needs torch; run it where it stands."""

import json
import math
import pathlib

import torch

torch.manual_seed(5)
torch.set_default_dtype(torch.float64)

HIDDEN, INTER, HEADS, LAYERS, VOCAB, OLD, EPS, THETA = 12, 16, 2, 2, 24, 20, 1e-5, 10000.0
KV, DIM = 1, HIDDEN // HEADS
DAMPING, PULL, WEIGHT, GATE, LR, SCHEDULE, ADAM_EPS = 0.1, 0.4, 0.7, 0.5, 0.02, 0.8, 1e-3
RANKS, EVERY, STEPS = [2, 1, 1], 2, 5
SITES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN, "attention"),
    "self_attn.k_proj": (KV * DIM, HIDDEN, "attention"),
    "self_attn.v_proj": (KV * DIM, HIDDEN, "attention"),
    "self_attn.o_proj": (HIDDEN, HIDDEN, "o"),
    "mlp.gate_proj": (INTER, HIDDEN, "mlp"),
    "mlp.up_proj": (INTER, HIDDEN, "mlp"),
    "mlp.down_proj": (HIDDEN, INTER, "down"),
}


def rounded(x):
    """What single precision holds, so that the engine starts from the same numbers."""
    return x.to(torch.float32).to(torch.float64)


def start():
    w = {"model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN) * 0.7, "lm_head.weight": torch.randn(VOCAB, HIDDEN) * 0.5}
    w["model.norm.weight"] = 1 + 0.1 * torch.randn(HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            w[f"{at}{norm}.weight"] = 1 + 0.1 * torch.randn(HIDDEN)
        for site, (m, n, _) in SITES.items():
            w[f"{at}{site}.weight"] = torch.randn(m, n) * 0.4
    return {name: rounded(x) for name, x in w.items()}


def norm(x, weight):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS)


def turn(x):
    """Rotary positions of [T x heads x DIM]."""
    angles = torch.arange(len(x))[:, None] * THETA ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.cat([angles, angles], -1)[:, None]
    half = torch.cat([-x[..., DIM // 2 :], x[..., : DIM // 2]], -1)
    return x * torch.cos(angles) + half * torch.sin(angles)


def final(w, tokens):
    """Final hidden states of one text."""
    x = w["model.embed_tokens.weight"][tokens]
    mask = torch.full((len(tokens), len(tokens)), -math.inf).triu(1)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        get = lambda name: w[f"{at}{name}.weight"]
        h = norm(x, get("input_layernorm"))
        q = turn((h @ get("self_attn.q_proj").T).view(-1, HEADS, DIM))
        k = turn((h @ get("self_attn.k_proj").T).view(-1, KV, DIM)).repeat_interleave(HEADS // KV, 1)
        v = (h @ get("self_attn.v_proj").T).view(-1, KV, DIM).repeat_interleave(HEADS // KV, 1)
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(DIM) + mask
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(tokens), -1)
        x = x + mixed @ get("self_attn.o_proj").T
        h = norm(x, get("post_attention_layernorm"))
        gate = torch.nn.functional.silu(h @ get("mlp.gate_proj").T)
        x = x + (gate * (h @ get("mlp.up_proj").T)) @ get("mlp.down_proj").T
    return norm(x, w["model.norm.weight"])


def gradients(w, names, loss):
    live = {name: x.clone().requires_grad_(name in names) for name, x in w.items()}
    return torch.autograd.grad(loss(live), [live[name] for name in names])


def spectrum(dim, known, scale):
    """A second moment by its leading eigenvectors, the others alike."""
    directions = rounded(torch.linalg.qr(torch.randn(dim, dim))[0])[:known]
    values = scale * (0.6 ** torch.arange(dim) + 0.02)
    rest = float(values[known:].mean()) if known < dim else 0.0
    return {"dim": dim, "directions": directions, "values": values[:known], "rest": rest}


def matrix(s, f=lambda v: v):
    rest = f(torch.tensor(s["rest"]))
    u = s["directions"]
    return rest * torch.eye(s["dim"]) + u.T @ torch.diag(f(s["values"]) - rest) @ u


def metric(s):
    mean = matrix(s).trace() / s["dim"]
    root = matrix(s, lambda v: (v / mean + DAMPING) ** -0.5)
    return root * torch.sqrt(s["dim"] / (root @ root).trace())


def pulled(d, f, c, tau):
    """The minimum of 1/2 |D' - D|^2 + tau/2 tr(F D' C D'^T), as one linear system."""
    m, n = d.shape
    system = torch.eye(m * n) + tau * torch.kron(f, c)
    return torch.linalg.solve(system, d.reshape(-1)).view(m, n)


def leading(g, count, before):
    for q in before:
        g = g - (g @ q.T) @ q
    return torch.linalg.svd(g, full_matrices=False)[2][:count]


base = start()
names = [f"model.layers.{layer}.{site}.weight" for layer in range(LAYERS) for site in SITES]
sequences = [[[3, 9, 1, 21], [5, 2, 22]], [[7, 7, 4, 11, 23], [0, 20], [8, 13, 2, 20]]]
texts = [[1, 5, 9, 13, 2], [4, 8, 15, 16], [3, 6, 7, 19, 0, 10]]
known = {"attention": 12, "o": 5, "mlp": 12, "down": 6}
inputs, outputs = {}, {}
for layer in range(LAYERS):
    for group, dim in [("attention", HIDDEN), ("o", HIDDEN), ("mlp", HIDDEN), ("down", INTER)]:
        inputs[layer, group] = spectrum(dim, known[group], 0.5 + layer)
    for site, (m, _, _) in SITES.items():
        outputs[f"model.layers.{layer}.{site}.weight"] = spectrum(m, m if m < 12 else m - 7, 0.01 / (1 + 3 * layer))
input_of = {f"model.layers.{layer}.{site}.weight": (layer, group) for layer in range(LAYERS) for site, (_, _, group) in SITES.items()}

C = {name: matrix(inputs[input_of[name]]) for name in names}
F = {name: matrix(outputs[name]) for name in names}
S = {name: metric(inputs[input_of[name]]) for name in names}
P = {name: metric(outputs[name]) for name in names}
mean = lambda x: float(x.trace()) / len(x)
cost = {name: mean(S[name] @ C[name] @ S[name]) * mean(P[name] @ F[name] @ P[name]) for name in names}
middle = math.exp(sum(-0.5 * math.log(c) for c in cost.values()) / len(names))
factor = {name: cost[name] ** -0.5 / middle for name in names}
costs = sorted(mean(C[name]) * mean(F[name]) for name in names)
half = len(costs) // 2
tau = PULL / (0.5 * (costs[(len(costs) - 1) // 2] + costs[half]))

labels = [len(task) for task in sequences]
predictions = lambda w: torch.cat([(final(w, text) @ w["lm_head.weight"][:OLD].T).log_softmax(-1) for text in texts])
before = predictions(base)


def task_loss(t):
    def loss(w):
        nll = [-(final(w, s[:-1])[-1] @ w["lm_head.weight"].T).log_softmax(-1)[s[-1]] for s in sequences[t]]
        return sum(nll) / sum(labels)

    return loss


def divergence(w):
    now = predictions(w)
    return (before.exp() * (before - now)).sum(-1).mean()


def bases(window):
    """window: gradients of each task by name."""
    found = {}
    for i, name in enumerate(names):
        whitened = [P[name] @ g[i] @ S[name] for g in window]
        kept = []
        for stream, count in zip([sum(whitened)] + whitened, RANKS):
            kept.append(leading(stream, count, kept))
        found[name] = kept
    return found


weights = dict(base)
Q = bases([gradients(weights, names, task_loss(t)) for t in range(2)])
m = {name: [torch.zeros(len(P[name]), r) for r in RANKS] for name in names}
v = {name: [torch.zeros(len(P[name]), r) for r in RANKS] for name in names}
window, record, held = None, [], None
for step in range(1, STEPS + 1):
    if (step - 1) % EVERY == 0:
        window = [[torch.zeros_like(base[name]) for name in names] for _ in range(2)]
        kl = float(divergence(weights))
        held = gradients(weights, names, divergence)
    g = [gradients(weights, names, task_loss(t)) for t in range(2)]
    for t in range(2):
        window[t] = [a + b for a, b in zip(window[t], g[t])]
    square = 0.0
    for i, name in enumerate(names):
        change = torch.zeros_like(base[name])
        for s, q in enumerate(Q[name]):
            scale = 1.0 if s == 0 else sum(labels) / labels[s - 1]
            whole = (g[0][i] + g[1][i] if s == 0 else g[s - 1][i]) + WEIGHT * held[i]
            a = q @ S[name]
            r = scale * P[name] @ whole @ a.T
            m[name][s] = 0.9 * m[name][s] + 0.1 * r
            v[name][s] = 0.999 * v[name][s] + 0.001 * r * r
            direction = (m[name][s] / (1 - 0.9**step)) / (torch.sqrt(v[name][s] / (1 - 0.999**step)) + ADAM_EPS)
            change -= LR * factor[name] * (1.0 if s == 0 else GATE) * P[name] @ direction @ a
        weights[name] = weights[name] + change
        square += float((change * change).sum())
    record.append({"kl": kl if (step - 1) % EVERY == 0 else None, "update_norm": math.sqrt(square)})
    if step % EVERY == 0:
        new = bases(window)
        for name in names:
            d = weights[name] - base[name]
            weights[name] = base[name] + pulled(d, F[name], C[name], tau * SCHEDULE)
            m[name] = [a @ old @ fresh.T for a, old, fresh in zip(m[name], Q[name], new[name])]
        Q = new

number = lambda s: {**s, "directions": s["directions"].flatten().tolist(), "values": s["values"].tolist()}
groups = list(inputs)
case = {
    "config": {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTER,
        "num_attention_heads": HEADS, "num_key_value_heads": KV, "num_hidden_layers": LAYERS, "rms_norm_eps": EPS,
        "rope_theta": THETA, "tie_word_embeddings": False,
    },
    "old": OLD, "damping": DAMPING, "pull": PULL, "weight": WEIGHT, "gate": GATE, "lr": LR, "schedule": SCHEDULE,
    "eps": ADAM_EPS, "ranks": RANKS, "every": EVERY, "sequences": sequences, "texts": texts, "steps": record,
    "inputs": [number(inputs[group]) for group in groups],
    "input_of": {name.removesuffix(".weight"): groups.index(input_of[name]) for name in names},
    "gradients": {name.removesuffix(".weight"): number(outputs[name]) for name in names},
    "start": {name: x.flatten().tolist() for name, x in base.items()},
    "end": {name.removesuffix(".weight"): weights[name].flatten().tolist() for name in names},
}
path = pathlib.Path(__file__).parent / "knowledge.json"
path.write_text(json.dumps(json.loads(json.dumps(case), parse_float=lambda x: float(f"{float(x):.9g}")), separators=(",", ":")) + "\n")
print(path, path.stat().st_size, record)
