"""Reference vectors of packed weights, made by the peers' own code: compressed-tensors, bitsandbytes, GPTQModel, AutoAWQ.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors numpy loguru psutil
    venv/bin/pip install --no-deps compressed-tensors==0.20.0 bitsandbytes==0.50.2
    venv/bin/pip download --no-deps --no-binary :all: --no-build-isolation autoawq==0.2.9 gptqmodel==7.7.0   # unpacked into SOURCES
    venv/bin/python packed_formats.py OUT.safetensors SOURCES

GPTQModel and AutoAWQ want CUDA when imported; of their source archives only the packing functions are taken and run as they are:
`pack_original` of gptqmodel/nn_modules/qlinear/__init__.py, `WQLinear_GEMM.from_linear` of awq/modules/linear/gemm.py and
`dequantize_gemm` of awq/utils/packing_utils.py; the change of zeros between the versions is that of gptqmodel/utils/model_dequant.py.

The file holds for each case NAME: `NAME/PART` (each stored part) and `NAME/values` (what the peer's own code decodes of rows 4 to 11, f32), all from
`weight` (f32 [32, 256], outliers, a zero group). Metadata: `cases`, a JSON list of {name, id, kind}, and versions.
"""
import ast, datetime, json, math, sys, textwrap
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.manual_seed(7)

ROWS, COLS = 32, 256
# Rows whose decoded values are kept: the tiny one and the one with a zero group among them.
VALUES = slice(4, 12)


def weight():
    w = torch.randn(ROWS, COLS) * 0.02
    w[:, 17] *= 30
    w[5] *= 0.001
    w[9, 128:256] = 0
    return w


def compressed_tensors(w, out, cases):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams
    todo = []
    for bits in range(2, 9):
        for symmetric in (True, False):
            todo.append((bits, symmetric, "group", 32 if bits < 4 else 128, torch.float32))
    todo += [(4, True, "group", 128, torch.float16), (4, False, "group", 64, torch.bfloat16), (8, True, "channel", None, torch.float16),
             (5, False, "channel", None, torch.float32), (8, True, "tensor", None, torch.float32), (8, False, "tensor", None, torch.float32)]
    for bits, symmetric, strategy, group, dtype in todo:
        args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=group, scale_dtype=dtype)
        if strategy == "group":
            g = w.reshape(ROWS, COLS // group, group); low, high = g.amin(-1), g.amax(-1)
        elif strategy == "channel":
            low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        else:
            low, high = w.min().reshape(1), w.max().reshape(1)
        scale, zero = calculate_qparams(low, high, args)
        scale = scale.to(dtype)
        tiny = scale == 0
        if tiny.any():
            raise SystemExit("a scale became 0: choose other weights")
        kind = "int-quantized" if (bits, strategy) == (8, "tensor") else "pack-quantized"
        compressor = BaseCompressor.get_value_from_registry(kind)
        state = {"weight": w, "weight_scale": scale.float() if dtype == torch.float32 else scale}
        if not symmetric:
            state["weight_zero_point"] = zero.to(torch.int8)
        # Codes are computed in f32 from the rounded scale, as loaders that keep scales exactly see it.
        state["weight_scale"] = scale.float()
        packed = compressor.compress(state, QuantizationScheme(targets=["Linear"], weights=args))
        values = compressor.decompress(dict(packed), QuantizationScheme(targets=["Linear"], weights=args))["weight"]
        packed["weight_scale"] = scale
        suffix = {torch.float16: "", torch.bfloat16: "_bf16", torch.float32: "_f32"}[dtype]
        where = f"g{group}" if group else strategy
        name = f"ct_int{bits}_{where}{'' if symmetric else '_asym'}{suffix}"
        put(out, cases, name, name[3:], "compressed-tensors", packed, values)
    for strategy in ("tensor", "channel", "block"):
        args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy, block_structure=[128, 128] if strategy == "block" else None)
        if strategy == "tensor":
            most = w.abs().max().reshape(1)
        elif strategy == "channel":
            most = w.abs().amax(-1, keepdim=True)
        else:
            most = torch.stack([w[:, c:c + 128].abs().max() for c in range(0, COLS, 128)]).reshape(1, -1)
        scale, _ = calculate_qparams(-most, most, args)
        compressor = BaseCompressor.get_value_from_registry("float-quantized")
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        packed = compressor.compress({"weight": w, "weight_scale": scale.float()}, scheme)
        values = compressor.decompress(dict(packed), scheme)["weight"]
        put(out, cases, f"ct_fp8_{strategy}", "fp8_e4m3_" + (strategy if strategy != "block" else "block128"), "compressed-tensors", packed, values)


def bitsandbytes(w, out, cases):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    for table in ("nf4", "fp4"):
        for double in (False, True):
            q, state = quantize_4bit(w, quant_type=table, compress_statistics=double, blocksize=64)
            parts = {"weight": q, **{f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
            name = f"{table}{'_dq' if double else ''}"
            put(out, cases, f"bnb_{name}", name, "bitsandbytes", parts, dequantize_4bit(q, state))


def function(path, name, owner=None):
    """The source of one function, compiled by itself."""
    tree = ast.parse(path.read_text())
    body = tree.body if owner is None else next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner).body
    node = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == name)
    node.decorator_list = []
    return ast.unparse(node)


class Holder(torch.nn.Module):
    pass


def gptq(w, out, cases, sources):
    path = next(p for p in sources.glob("gptqmodel-*") if p.is_dir()) / "gptqmodel/nn_modules/qlinear/__init__.py"
    owner = next(n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and any(isinstance(m, ast.FunctionDef) and m.name == "pack_original" for m in n.body))
    import contextlib, transformers, torch as t
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    class Limits:
        @staticmethod
        def threadpool_limits(_): return contextlib.nullcontext()
    space = dict(t=t, torch=t, np=np, nn=nn, math=math, transformers=transformers, _ConvNd=_ConvNd, THREADPOOLCTL=Limits)
    import transformers.pytorch_utils
    exec(function(path, "pack_original", owner), space)
    dequant = path.parents[2] / "utils/model_dequant.py"
    space["PLANAR_BITS"] = (5, 6, 7)
    for node in ast.parse(dequant.read_text()).body:
        if isinstance(node, ast.FunctionDef) and ("3bit" in node.name or "_qzeros" in node.name or node.name in ("pack_cols", "unpack_cols")):
            exec("from __future__ import annotations\n" + ast.unparse(node), space)
    for bits in (2, 3, 4, 8):
        for symmetric in (True, False):
            group = 64 if bits < 4 else 128
            g = w.reshape(ROWS, COLS // group, group)
            top = 2 ** bits - 1
            if symmetric:
                scale = g.abs().amax(-1) / (top / 2); zero = torch.full_like(scale, (top + 1) // 2)
            else:
                low, high = g.amin(-1).clamp(max=0), g.amax(-1).clamp(min=0)
                scale = (high - low) / top; scale[scale == 0] = 1; zero = torch.round(-low / scale)
            scale[scale == 0] = 1
            scale = scale.half().float(); scale[scale == 0] = 6e-5; scale = scale.half().float()
            for version in ("gptq", "gptq_v2"):
                if version == "gptq" and not symmetric: continue
                linear = nn.Linear(COLS, ROWS, bias=False); linear.weight.data = w.clone()
                holder = Holder()
                holder.bits, holder.maxq, holder.pack_dtype_bits, holder.pack_factor, holder.planar = bits, top, 32, 32 // bits, False
                holder.pack_np_math_dtype, holder.pack_np_dtype, holder.pack_dtype = np.uint32, np.int32, t.int32
                holder.in_features, holder.out_features, holder.group_size = COLS, ROWS, group
                order = torch.arange(COLS, dtype=torch.int32) // group
                # The first version takes zeros less one and stores what it takes.
                holder_zero = zero.clone()
                space["pack_original"](holder, linear, scale.clone(), holder_zero, order)
                parts = {k: getattr(holder, k) for k in ("qweight", "qzeros", "scales", "g_idx")}
                if version == "gptq":
                    # As GPTQModel's convert_gptq_v2_to_v1_format does before it saves.
                    parts["qzeros"] = space["_revert_gptq_v1_qzeros_correction"](parts["qzeros"], bits)
                codes = torch.round(w.reshape(ROWS, -1, group) / scale[..., None] + zero[..., None]).clamp(0, top)
                values = ((codes - zero[..., None]) * scale[..., None]).reshape(ROWS, COLS)
                name = f"{version}_int{bits}_g{group}{'' if symmetric else '_asym'}"
                put(out, cases, name, name.split("_", 1 if version == "gptq" else 2)[-1], version, parts, values)


def awq(w, out, cases, sources):
    root = next(p for p in sources.glob("autoawq-*") if p.is_dir()) / "awq"
    space = dict(torch=torch, get_best_device=lambda: "cpu")
    exec((root / "utils/packing_utils.py").read_text(), space)
    exec(function(root / "modules/linear/gemm.py", "from_linear", "WQLinear_GEMM"), space)
    group, top = 64, 15
    g = w.reshape(ROWS, COLS // group, group)
    low, high = g.amin(-1).clamp(max=0), g.amax(-1).clamp(min=0)
    scale = ((high - low) / top).half().float(); scale[scale == 0] = 6e-5; scale = scale.half().float()
    zero = torch.round(-low / scale).clamp(0, top)

    class Gemm(Holder):
        def __init__(self, bits, group, in_features, out_features, bias, dev):
            super().__init__()
            self.w_bit, self.group_size, self.in_features, self.out_features = bits, group, in_features, out_features
    linear = torch.nn.Linear(COLS, ROWS, bias=False); linear.weight.data = w.clone()
    packed = space["from_linear"](Gemm, linear, 4, group, False, scale.T.contiguous(), zero.T.contiguous())
    parts = dict(qweight=packed.qweight, qzeros=packed.qzeros, scales=packed.scales)
    values = space["dequantize_gemm"](packed.qweight, packed.qzeros, packed.scales.float(), 4, group).T
    put(out, cases, f"awq_int4_g{group}_asym", f"int4_g{group}_asym", "awq", parts, values)


def put(out, cases, name, identifier, kind, parts, values):
    cases.append(dict(name=name, id=identifier, kind=kind))
    for part, tensor in parts.items():
        out[f"{name}/{part}"] = tensor.detach().clone().contiguous()
    out[f"{name}/values"] = values.detach().float()[VALUES].clone().contiguous()


def main(target, sources):
    import importlib.metadata as metadata
    out, cases = {"weight": weight()}, []
    w = out["weight"]
    compressed_tensors(w, out, cases)
    bitsandbytes(w, out, cases)
    gptq(w, out, cases, sources)
    awq(w, out, cases, sources)
    versions = {k: metadata.version(k) for k in ("torch", "compressed-tensors", "bitsandbytes")}
    versions |= {p.name.split("-")[0]: p.name.split("-")[1] for p in sources.iterdir() if p.is_dir()}
    save_file(out, target, metadata=dict(cases=json.dumps(cases), versions=json.dumps(versions), made_by="tests/oracles/packed_formats.py", date=datetime.date.today().isoformat()))
    print(len(cases), "cases", versions)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
