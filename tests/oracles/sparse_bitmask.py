"""compressed-tensors' sparse-bitmask: its own code on matrices with zeros as a fixture, and a look at a folder of ours.

    pip install --no-deps compressed-tensors==0.10.2; pip install torch safetensors pydantic
    python sparse_bitmask.py make tests/fixtures/sparse_bitmask.safetensors
    lapidary mask demo --method magnitude --pattern 2:4 -o MASKED; lapidary mask demo --method magnitude --pattern 2:4 --dense -o PLAIN
    python sparse_bitmask.py check MASKED PLAIN

`make` writes for three types a dense matrix and the parts that the package's BitmaskCompressor makes of it. `check` reads the configuration of
MASKED with the package, decompresses the folder with its compressor, and compares every tensor with PLAIN bit by bit; exit status 1 where one
differs. Only the compressor is loaded (compressed_tensors/compressors/sparse_compressors/sparse_bitmask.py): the rest of the package wants
transformers. 0.10.2 is among the last versions that have it.
"""
import json
import sys
from pathlib import Path
import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file


def package():
    """The two functions of the compressor, from the installed package's file, without importing the package."""
    root = Path(next(p for p in sys.path if (Path(p) / "compressed_tensors").is_dir())) / "compressed_tensors"
    utils = (root / "utils" / "helpers.py").read_text()
    scope = {"torch": torch, "numpy": numpy, "List": list}
    for name in ("pack_bitmasks", "unpack_bitmasks"):
        start = utils.index(f"def {name}(")
        exec(utils[start : utils.find("\ndef ", start + 1) if utils.find("\ndef ", start + 1) > 0 else None].split("\n@")[0], scope)
    source = (root / "compressors" / "sparse_compressors" / "sparse_bitmask.py").read_text()
    scope |= {"Tensor": torch.Tensor, "Tuple": tuple, "FP8_DTYPE": torch.float8_e4m3fn}
    exec(source[source.index("def bitmask_compress(") :], scope)
    return scope["bitmask_compress"], scope["bitmask_decompress"]


def make(out):
    compress, decompress = package()
    torch.manual_seed(7)
    tensors = {}
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)):
        dense = torch.randn(13, 43).to(dtype)
        dense[torch.rand(13, 43) < 0.6] = 0
        dense[5] = 0
        dense[7, ::3] = -0.0
        values, mask, offsets = compress(dense)
        assert torch.equal(decompress(values, mask, dense.shape), dense)
        parts = {"dense": dense, "compressed": values, "bitmask": mask, "row_offsets": offsets, "shape": torch.tensor(dense.shape)}
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in parts.items()}
    save_file(tensors, out)


def check(masked, plain):
    _, decompress = package()
    sparsity = json.loads((Path(masked) / "config.json").read_text())["quantization_config"]["sparsity_config"]
    assert sparsity["format"] == "sparse-bitmask", sparsity
    bad = count = 0
    with safe_open(Path(masked) / "model.safetensors", "pt") as ours, safe_open(Path(plain) / "model.safetensors", "pt") as dense:
        names = set(ours.keys())
        for name in dense.keys():
            module = name.removesuffix(".weight")
            if f"{module}.bitmask" in names:
                part = lambda key: ours.get_tensor(f"{module}.{key}")
                found = decompress(part("compressed"), part("bitmask"), part("shape").tolist())
                assert module not in sparsity["ignore"], module
                count += 1
            else:
                found = ours.get_tensor(name)
            bad += not torch.equal(found, dense.get_tensor(name))
    print(f"{count} matrices without their zeros, {bad} tensors differ, sparsity {sparsity['global_sparsity']:.4f}")
    return int(bad > 0 or count == 0)


if __name__ == "__main__":
    sys.exit({"make": make, "check": check}[sys.argv[1]](*sys.argv[2:]))
