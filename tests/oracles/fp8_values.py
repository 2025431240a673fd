"""The values of both 8-bit floats and what f32 rounds to, by ml_dtypes.

    pip install ml_dtypes==0.6.0 numpy
    python fp8_values.py tests/fixtures/ml_dtypes_fp8.json

`values` holds the f32 bits of all 256 bytes of a type. `bytes` holds what each of `inputs` (bits of f32) is cast to once it is clipped to the
type's finite range, as compressed-tensors does before it casts. Inputs are every finite value of both types, the middles between neighbours and the
floats beside those, floats of every exponent, and what lies beyond; NaN is left out of `inputs`.
"""
import json
import sys

import ml_dtypes
import numpy as np

TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def values(dtype):
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)


def inputs():
    found = []
    for dtype in TYPES.values():
        finite = values(dtype)
        finite = np.unique(finite[np.isfinite(finite)])
        middles = (finite[1:] + finite[:-1]) / np.float32(2)
        around = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
        found += [finite, middles, *around]
    random = np.random.default_rng(8)
    exponents = np.arange(1, 255, dtype=np.uint32).repeat(4) << 23
    bits = exponents | random.integers(0, 1 << 23, exponents.size, dtype=np.uint32)
    bits |= random.integers(0, 2, exponents.size, dtype=np.uint32) << 31
    found += [bits.view(np.float32), np.array([0.0, -0.0, 1e-45, -1e-40, np.inf, -np.inf, 3.4e38], dtype=np.float32)]
    return np.concatenate(found).astype(np.float32)


def main(out):
    source = inputs()
    result = {
        "made_by": "tests/oracles/fp8_values.py",
        "versions": {"ml_dtypes": ml_dtypes.__version__, "numpy": np.__version__},
        "inputs": source.view(np.uint32).tolist(),
        "types": {},
    }
    for name, dtype in TYPES.items():
        most = np.float32(ml_dtypes.finfo(dtype).max)
        cast = np.clip(source, -most, most).astype(dtype).view(np.uint8)
        result["types"][name] = {"values": values(dtype).view(np.uint32).tolist(), "bytes": cast.tolist()}
    with open(out, "w") as file:
        json.dump(result, file, separators=(",", ":"))
        file.write("\n")


main(sys.argv[1])
