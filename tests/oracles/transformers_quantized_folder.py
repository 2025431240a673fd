"""Do transformers' own loaders take our folders with packed weights, and what do they compute?

    venv as for packed_formats.py, and: venv/bin/pip install --no-deps accelerate
    for each case of CASES below: lapidary plan demo --format FORMAT --target TARGET -o PLAN and lapidary run demo --plan PLAN -o NAME, then
    venv/bin/python transformers_quantized_folder.py OUT.json ORIGINAL_FOLDER NAME=FOLDER ...

CASES (name = format): compressed-tensors int4_g128 int4_g128_asym int3_g64_asym_bf16 int8_channel int8_tensor fp8_e4m3_channel fp8_e4m3_tensor
fp8_e4m3_block128; bitsandbytes nf4 nf4_dq fp4 fp4_dq; and compressed-tensors mixed: int4_g128, down projections int8_channel, layer 0 protected.

compressed-tensors and bitsandbytes folders are loaded by AutoModelForCausalLM (device_map "cpu", float32) and run as loaded,
bitsandbytes with its compute type set to float32. GPTQ and AWQ folders
need CUDA kernels there; they are not run, see packed_formats.py for their bytes. For each folder OUT.json has: the quantization method that the loader saw, the number of quantized
modules, mean KL(original || folder) in nats and the share of equal top tokens on TEXT, the logits of the last position (first 32), and the
square sum of each quantized weight as the loader's own code decodes it (float64), by name.
"""
import datetime, json, sys
from pathlib import Path
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

torch.set_num_threads(1)
TEXT = "The code for walnut is 9420. The code for tulip is 8806. Die alte Katze sitzt neben dem neuen Stuhl.\n8 - 3 = 5\n31 + 76 = 107"


def decoded(model):
    """Weights of quantized linears as their own package decodes them."""
    found = {}
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            from bitsandbytes.functional import dequantize_4bit
            state.dtype = torch.float32
            found[name] = dequantize_4bit(module.weight.data, state)
        elif getattr(module, "quantization_scheme", None) is not None:
            found[name] = module.weight.data
    return found


def packed_modules(folder):
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        return [k.removesuffix(".weight_packed") for k in file.keys() if k.endswith(".weight_packed")]


def exactly(model, folder):
    """Decodes weights again with scales in float32: while loading they are multiplied in the type of the scale, which rounds."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    groups = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]["config_groups"]
    (group,) = groups.values()
    scheme = QuantizationScheme(targets=["Linear"], weights=group["weights"])
    found = {}
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        for name in packed_modules(folder):
            state = {k.removeprefix(name + "."): file.get_tensor(k) for k in file.keys() if k.startswith(name + ".")}
            state["weight_scale"] = state["weight_scale"].float()
            exact = BaseCompressor.get_value_from_registry("pack-quantized").decompress(state, scheme)["weight"]
            loaded = model.get_submodule(name).weight
            if not torch.allclose(exact, loaded.data.float(), rtol=2 ** -7, atol=0):
                raise SystemExit(f"{name}: the loader decodes something else")
            loaded.data = found[name] = exact
    return found


@torch.no_grad()
def main(out, original, folders):
    tok = AutoTokenizer.from_pretrained(original)
    base = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([[base.config.bos_token_id] + tok(TEXT, add_special_tokens=False)["input_ids"]])
    lq = torch.log_softmax(base(ids).logits[0].double(), -1)
    result = dict(text=TEXT, ids=ids[0].tolist(), folders={})
    bad = []
    for name, folder in folders:
        load = lambda **more: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", device_map="cpu", output_loading_info=True, **more)
        way = "as is"
        try:
            model, info = load()
        except RuntimeError as err:
            # compressed-tensors 0.20.0 makes room for unpacked zeros (its `compress` on the meta device), so that transformers refuses
            # every asymmetric packed checkpoint; its other loader, which decodes while loading, takes them.
            if "mismatched" not in str(err):
                raise
            way = "dequantize=True"  # then decoded again in float32, see exactly()
            model, info = load(quantization_config=CompressedTensorsConfig(dequantize=True))
        model = model.eval()
        for parameter in model.parameters():
            # The loader of bitsandbytes leaves plain weights in bfloat16 whatever is asked for; every bfloat16 is a float32.
            if parameter.is_floating_point() and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        for module in model.modules():
            if hasattr(module, "compute_dtype"):
                # The folder asks for bfloat16; in float32 rounding does not hide a wrong weight.
                module.compute_dtype, module.compute_type_is_set = torch.float32, True
        for key, value in info.items():
            value = [v for v in value if not (key == "missing_keys" and v == "lm_head.weight" and model.config.tie_word_embeddings)]
            if value:
                bad.append(f"{name} {key}: {sorted(map(str, value))[:5]}")
        if way != "as is":
            weights = exactly(model, folder)
        logits = model(ids).logits[0]
        if way == "as is":
            # compressed-tensors decodes at the first pass.
            weights = decoded(model)
        lp = torch.log_softmax(logits.double(), -1)
        method = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]["quant_method"]
        result["folders"][name] = dict(
            method=method, loaded=way, modules=len(weights), kld_mean=float((lq.exp() * (lq - lp)).sum(-1).mean()),
            same_top=float((lq.argmax(-1) == lp.argmax(-1)).double().mean()), last_logits=[float(v) for v in logits[-1][:32]],
            square_sums={k: float((v.double() ** 2).sum()) for k, v in sorted(weights.items())})
        r = result["folders"][name]
        print(name, method, way, r["modules"], "KLD %.6f" % r["kld_mean"], "same top %.4f" % r["same_top"])
        if not weights or not torch.isfinite(logits).all():
            bad.append(f"{name}: nothing was quantized, or a logit is not finite")
    import importlib.metadata as metadata
    result["versions"] = {k: metadata.version(k) for k in ("torch", "transformers", "compressed-tensors", "bitsandbytes", "accelerate")}
    result |= dict(made_by="tests/oracles/transformers_quantized_folder.py", date=datetime.date.today().isoformat(), device="cpu", arithmetic="float32")
    Path(out).write_text(json.dumps(result, indent=1))
    for line in bad:
        print("PROBLEM", line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], [a.split("=", 1) for a in sys.argv[3:]]))
