"""Makes the golden cases of weights in codes: tiny random Llama models as bitsandbytes, GPTQ and AWQ store them, with every weight's
values, logits, and for nf4 a LoRA run of PEFT on it. Writes below this directory (or the one given) and into manifest.json.

    python make_quantised.py [--to DIR] [--gptq FILE] [--awq FILE]

bitsandbytes' values are the library's own (transformers 4, bitsandbytes 0.50, on the CPU). GPTQ and AWQ are packed here by what their
libraries document, and unpacked by a formula that shares nothing with the packing; `--gptq` (auto_gptq/nn_modules/qlinear/
qlinear_cuda_old.py of AutoGPTQ 0.7.1) and `--awq` (awq/utils/packing_utils.py of AutoAWQ 0.2.9) also hold that to the libraries' code.
"""

import argparse
import ast
import copy
import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

import make_families as families

SIZES = dict(families.SMALL, intermediate_size=24, num_hidden_layers=1, head_dim=8)
LAYERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
MODULES = [f"model.layers.0.{layer}" for layer in LAYERS]
FOUR = dict(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
BITSANDBYTES = {
    # Blocks of 64 through rows of 16 and 20 values, their largest values in codes of 8 bits.
    "quantised_nf4": (dict(FOUR, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), torch.float32, 20),
    "quantised_nf4_bf16": (dict(FOUR, bnb_4bit_quant_type="nf4"), torch.bfloat16, 24),
    "quantised_nf4_half": (dict(FOUR, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True), torch.float16, 24),
    "quantised_fp4": (dict(FOUR, bnb_4bit_quant_type="fp4"), torch.float32, 24),
    "quantised_int8": (dict(load_in_8bit=True), torch.float32, 24),
}
# bits, group_size, desc_act, checkpoint_format
GPTQ = {
    "quantised_gptq": (4, 8, False, "gptq"),
    "quantised_gptq_v2": (4, -1, False, "gptq_v2"),
    "quantised_gptq_8": (8, 16, False, "gptq"),
    "quantised_gptq_act": (4, 8, True, "gptq"),
}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def plain(seed, inner=24):
    config = transformers.LlamaConfig(**{**SIZES, "intermediate_size": inner, "attn_implementation": "eager"})
    model = transformers.LlamaForCausalLM(config).eval()
    families.shake(model, seed)
    return model


def rounded(model, dtype):
    """The same model with its parameters as this type has them, in f32; buffers stay what they are."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        [p.copy_(p.to(dtype).float()) for p in model.parameters()]
    return model


def with_weights(model, weights):
    """The same model with these values of layers, in f32."""
    model = copy.deepcopy(model)
    for name, values in weights.items():
        with torch.no_grad():
            model.get_submodule(name).weight.copy_(values.float())
    return model


def enter_folder(out, name):
    for file in sorted((out.to / "models" / name).iterdir()):
        out.enter(f"models/{name}/{file.name}", "a base in codes", tensors=load_file(file) if file.suffix == ".safetensors" else None)


def case(out, name, model, weights, words):
    """Every weight's values; logits of a model that has them."""
    data = families.batch(words, families.ROWS[:2], False)
    logits = families.forward(model, data)[0]
    tensors = {f"weight.{k}": v.float() for k, v in weights.items()} | {f"batch.{k}": v for k, v in data.items()} | {"logits": logits}
    out.tensors(f"quantised/{name}/case.safetensors", tensors, "values of weights in codes as f32, a batch, logits with them",
                {"rtol": 1e-4, "atol": 2e-4})


def bitsandbytes(out, name, seed, words):
    import bitsandbytes as bnb

    settings, dtype, inner = BITSANDBYTES[name]
    folder, base = out.to / "models" / name, plain(seed, inner)
    config = transformers.BitsAndBytesConfig(**settings)
    opened = lambda: transformers.LlamaForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, dtype=dtype, attn_implementation="eager")
    with tempfile.TemporaryDirectory() as whole:
        copy.deepcopy(base).to(dtype).save_pretrained(whole)
        made = transformers.LlamaForCausalLM.from_pretrained(whole, quantization_config=config, device_map={"": "cpu"}, dtype=dtype)
        made.save_pretrained(folder)
    words.save_pretrained(folder)
    made, weights = opened(), {}
    for module in MODULES:
        weight = made.get_submodule(module).weight
        if "load_in_4bit" in settings:
            weights[module] = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            assert weights[module].dtype == dtype
        else:
            weights[module] = bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB if weight.SCB is not None else made.get_submodule(module).state.SCB)
    enter_folder(out, name)
    exact = with_weights(rounded(base, dtype), weights)
    case(out, name, exact, weights, words)
    if name == "quantised_nf4":
        data = families.batch(words, families.ROWS, False)
        theirs = families.forward(made, data)[0]
        print(name, "their logits differ by", (theirs - families.forward(exact, data)[0]).abs().max().item())
        doubles = lambda tuned: with_adapter(exact, tuned)
        families.lora_case(out, name, data, 900 + seed, opened, doubles)


def with_adapter(base, tuned):
    import peft

    again = peft.get_peft_model(copy.deepcopy(base), tuned.peft_config["default"]).eval()
    again.load_state_dict({k: v for k, v in tuned.state_dict().items() if "lora_" in k}, strict=False)
    return again.double()


def quantise(weight, bits, size):
    """Codes [N x M], and scales and zeros [groups x M], of a weight [M x N]; some zeros are 0, as only wrapping stores it."""
    w = weight.t().double().numpy()
    groups = [w[i:i + size] for i in range(0, len(w), size)]
    low = np.stack([np.minimum(g.min(0), 0) for g in groups])
    low[:, ::5] = 0
    high = np.stack([np.maximum(g.max(0), 1e-3) for g in groups])
    most = 2**bits - 1
    scales = ((high - low) / most).astype(np.float16)
    zeros = np.clip(np.round(-low / scales), 0, most).astype(np.int64)
    each = np.arange(len(w)) // size
    return each, scales, zeros, lambda of: np.clip(np.round(w / scales[of]) + zeros[of], 0, most).astype(np.int64)


def along(values, bits, axis, order=range(32)):
    """Values packed into words of 32 bits along an axis, in this order from the low bits up."""
    each = 32 // bits
    values = np.moveaxis(values, axis, -1).reshape(*np.moveaxis(values, axis, -1).shape[:-1], -1, each).astype(np.uint64)
    words = sum(values[..., place] << np.uint64(bits * i) for i, place in zip(range(each), order))
    return torch.from_numpy(np.moveaxis(words.astype(np.uint32), -1, axis).copy().view(np.int32))


def values_of(codes, scales, zeros, groups):
    """scale (code - zero) in half precision: exact in doubles, then rounded once."""
    exact = scales[groups].astype(np.float64) * (codes - zeros[groups])
    return torch.from_numpy(exact.astype(np.float16).T.copy())


def packed(out, name, seed, words, settings, layers, weights, base):
    folder = out.to / "models" / name
    base.save_pretrained(folder)
    words.save_pretrained(folder)
    stored = {k: v.half() for k, v in load_file(folder / "model.safetensors").items() if k.removesuffix(".weight") not in weights}
    save_file(stored | layers, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": settings, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    enter_folder(out, name)
    case(out, name, with_weights(rounded(base, torch.float16), weights), weights, words)


def gptq(out, name, seed, words, library):
    bits, size, act, version = GPTQ[name]
    base, layers, weights = plain(seed), {}, {}
    for module in MODULES:
        weight = base.get_submodule(module).weight.detach()
        inputs = weight.shape[1]
        groups, scales, zeros, codes = quantise(weight, bits, inputs if size < 0 else size)
        if act:
            groups = np.random.default_rng(seed).permutation(groups)
        codes = codes(groups)
        stored = (zeros - (version == "gptq")) % 2**bits
        layers |= {f"{module}.qweight": along(codes, bits, 0), f"{module}.qzeros": along(stored, bits, 1),
                   f"{module}.scales": torch.from_numpy(scales), f"{module}.g_idx": torch.from_numpy(groups.astype(np.int32))}
        weights[module] = values_of(codes, scales, zeros, groups)
        if library and version == "gptq" and not act and inputs % size == 0:  # a last group that is shorter is beyond its unpacking
            held_to_gptq(library, bits, size, {k.removeprefix(f"{module}."): v for k, v in layers.items() if k.startswith(module)}, weights[module])
    settings = dict(quant_method="gptq", bits=bits, group_size=size, desc_act=act, sym=False, checkpoint_format=version)
    packed(out, name, seed, words, settings, layers, weights, base)


def held_to_gptq(library, bits, size, layer, want):
    """AutoGPTQ's product of the identity in its module that runs anywhere: its unpacking, as it is."""
    tree = ast.parse(library.read_text())
    (kind,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    (forward,) = [node for node in kind.body if getattr(node, "name", "") == "forward"]
    scope = dict(torch=torch)
    exec(compile(ast.Module([forward], []), str(library), "exec"), scope)
    inputs, outputs = layer["g_idx"].numel(), layer["scales"].shape[1]
    own = type("Layer", (), {})()
    own.__dict__.update(layer, bits=bits, group_size=size, infeatures=inputs, outfeatures=outputs, bias=None, autogptq_cuda_available=False,
                        wf=torch.tensor(list(range(0, 32, bits)), dtype=torch.int32).unsqueeze(0), kernel_switch_threshold=False)
    got = scope["forward"](own, torch.eye(inputs, dtype=torch.float16)).t()
    assert torch.equal(got, want), (got - want).abs().max()
    print("as AutoGPTQ unpacks it", tuple(got.shape))


def awq(out, name, seed, words, library):
    base, layers, weights, size = plain(seed), {}, {}, 8
    for module in MODULES:
        groups, scales, zeros, codes = quantise(base.get_submodule(module).weight.detach(), 4, size)
        codes = codes(groups)
        layer = dict(qweight=along(codes, 4, 1, AWQ_ORDER), qzeros=along(zeros, 4, 1, AWQ_ORDER), scales=torch.from_numpy(scales))
        layers |= {f"{module}.{k}": v for k, v in layer.items()}
        weights[module] = values_of(codes, scales, zeros, groups)
        if library:
            scope = {}
            exec(library.read_text(), scope)
            theirs = scope["dequantize_gemm"](layer["qweight"], layer["qzeros"], layer["scales"], 4, size).t()
            assert torch.equal(theirs, weights[module])
            print("as AutoAWQ unpacks it", tuple(theirs.shape))
    settings = dict(quant_method="awq", bits=4, group_size=size, zero_point=True, version="gemm", modules_to_not_convert=None)
    packed(out, name, seed, words, settings, layers, weights, base)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=pathlib.Path, default=families.HERE)
    parser.add_argument("--gptq", type=pathlib.Path)
    parser.add_argument("--awq", type=pathlib.Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    out, words, wanted = families.Writer(args.to), families.tokenizer(), [n for n in args.only.split(",") if n]
    make = {name: bitsandbytes for name in BITSANDBYTES}
    make |= {name: lambda *a: gptq(*a, args.gptq) for name in GPTQ} | {"quantised_awq": lambda *a: awq(*a, args.awq)}
    for seed, (name, of) in enumerate(make.items()):
        if not wanted or name in wanted:
            of(out, name, 300 + seed, words)
            print(name)
    out.close()


main()
