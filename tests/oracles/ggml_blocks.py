"""ggml's own block bytes for difficult rows: the reference of our encoders and decoders.

    llama_cpp_build.sh WORK; WORK/venv/bin/python ggml_blocks.py WORK/build OUT_FOLDER

Calls ggml_quantize_chunk and the type's to_float in libggml-base, built by llama_cpp_build.sh with -ffp-contract=off, and writes two files.

OUT_FOLDER/ggml_blocks.safetensors: q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k, f16 and bf16, without importance:

    input           f32 [rows, 512]             the rows
    <type>.bytes    u8  [rows, bytes per row]   what ggml encodes
    <type>.values   f32 [rows, 512]             what ggml decodes from those bytes

The names of the rows and the provenance are in the metadata of the file: `rows` (JSON list of [name, kind]); kind is
    "ordinary"  every scale is a finite half and no intermediate overflows
    "extreme"   scales overflow a half, become zero, or intermediates overflow or vanish: ggml's bytes are recorded as they came
Of either kind an encoder must give these bytes, and a decoder `values` bit for bit (NaN for NaN).
Each row is encoded twice, alone and within the whole, and compared; the file is written only when both agree.

OUT_FOLDER/ggml_blocks_more.safetensors, of the same rows:

    <type>.bytes, <type>.values     iq4_nl iq4_xs mxfp4, as above
    importance                      f32 [512], of the columns, the same for every row
    <type>.weighted                 u8 [rows, bytes per row], what ggml encodes with it: every type whose search it weighs
    <type>.read                     u8 [8, bytes per row], of the types that are only read: four rows as ggml encodes them (with the
                                    importance, where it asks for one), four of noise
    <type>.read_values              f32 [8, 512], what ggml decodes from them
    noise_sha256 (metadata)         JSON: for each type that is only read, the SHA-256 of the values (little-endian f32) that ggml decodes
                                    from 512 rows of 512 of noise: codebooks are covered whole
Noise is the bytes of the generator `Noise` below, one after another, and in each block the highest exponent bit of the scale is
cleared, so that every value is finite (`FINITE` says in which byte it lies).
"""
import ctypes, datetime, hashlib, json, struct, sys
from pathlib import Path
import numpy as np

TYPES = dict(f16=1, q4_0=2, q4_1=3, q5_0=6, q5_1=7, q8_0=8, q2_k=10, q3_k=11, q4_k=12, q5_k=13, q6_k=14, bf16=30)
MORE = dict(iq4_nl=20, iq4_xs=23, mxfp4=39)
WEIGHTED = "q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs".split()
READ = dict(q1_0=41, q2_0=42, tq1_0=34, tq2_0=35, nvfp4=40, iq1_s=19, iq1_m=29, iq2_xxs=16, iq2_xs=17, iq2_s=22, iq3_xxs=18, iq3_s=21, q8_k=15)
# Bytes of a block, and where in it lies the highest exponent bit of its scale (bit 6); nvfp4's scales are always finite.
FINITE = dict(q1_0=(18, 1), q2_0=(18, 1), tq1_0=(54, 53), tq2_0=(66, 65), nvfp4=(36, None), iq1_s=(50, 1), iq1_m=(56, 55), iq2_xxs=(66, 1),
              iq2_xs=(74, 1), iq2_s=(82, 1), iq3_xxs=(98, 1), iq3_s=(110, 1), q8_k=(292, 3))
WIDTH = 512


class Noise:
    """splitmix64, so that no library's generator matters."""
    def __init__(self, state):
        self.state = state

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & (2**64 - 1)
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        return z ^ (z >> 31)

    def uniform(self):
        return (self.next() >> 11) / 2**53

    def blocks(self, kind, rows, row_bytes):
        """Rows of blocks of noise with finite scales."""
        count = rows * row_bytes
        data = b"".join(self.next().to_bytes(8, "little") for _ in range(-(-count // 8)))[:count]
        data = np.frombuffer(data, np.uint8).copy()
        size, at = FINITE[kind]
        if at is not None:
            data.reshape(-1, size)[:, at] &= 0xBF
        return data.reshape(rows, row_bytes)


def importance():
    """Mean squares of activations: spread over five orders of magnitude, with columns and whole runs that were never active."""
    noise = Noise(7)
    values = np.array([np.exp(4 * noise.uniform() ** 2 - 6 * noise.uniform()) for _ in range(WIDTH)], np.float32)
    values[::41] *= np.float32(300)
    values[5::53] = 0
    values[256:320] = 0
    return values


def rows():
    """(name, kind, values)."""
    uniform = Noise(0x9E3779B97F4A7C15).uniform

    def gauss(n, scale=1.0):
        u = np.array([[uniform(), uniform()] for _ in range(n)])
        return (scale * np.sqrt(-2 * np.log(1 - u[:, 0])) * np.cos(2 * np.pi * u[:, 1])).astype(np.float32)

    def uni(n, lo, hi):
        return np.array([lo + (hi - lo) * uniform() for _ in range(n)], np.float32)

    n = WIDTH
    yield "gaussian", "ordinary", gauss(n)
    yield "gaussian, deviation 0.02", "ordinary", gauss(n, 0.02)
    out = gauss(n, 0.02); out[::37] *= 40; yield "outliers", "ordinary", out
    heavy = gauss(n, 0.05); heavy = heavy * np.abs(heavy) * np.float32(20) ; yield "heavy tails", "ordinary", heavy.astype(np.float32)
    yield "positive uniform", "ordinary", uni(n, 0.1, 1.0)
    yield "negative uniform", "ordinary", uni(n, -3.0, -0.5)
    mean = gauss(n, 0.1) + np.float32(2); yield "shifted mean", "ordinary", mean.astype(np.float32)
    alt = (uni(n, 0.5, 1.5) * np.where(np.arange(n) % 2, -1, 1)).astype(np.float32); yield "alternating sign", "ordinary", alt
    yield "ternary", "ordinary", np.array([int(uniform() * 3) - 1 for _ in range(n)], np.float32)
    ramp = (np.arange(n) / n - 0.5).astype(np.float32); yield "ramp", "ordinary", ramp
    blocks = gauss(n); blocks *= np.repeat(10.0 ** np.linspace(-4, 2, n // 16), 16).astype(np.float32); yield "scale by block", "ordinary", blocks.astype(np.float32)
    sparse = gauss(n); sparse[[i for i in range(n) if uniform() < 0.9]] = 0; yield "nine in ten zero", "ordinary", sparse
    zblk = gauss(n); zblk[64:96] = 0; zblk[256:512] = 0; yield "zero blocks", "ordinary", zblk
    yield "rounded to bf16", "ordinary", (gauss(n, 0.03).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    ties = (np.array([int(uniform() * 31) - 15 for _ in range(n)]) * 0.5).astype(np.float32); yield "ties", "ordinary", ties
    yield "constant", "ordinary", np.full(n, 0.75, np.float32)
    yield "constant negative", "ordinary", np.full(n, -1.3, np.float32)
    hot = np.zeros(n, np.float32); hot[17] = 1.5; hot[300] = -2.5; yield "one hot", "ordinary", hot
    yield "zero", "ordinary", np.zeros(n, np.float32)
    yield "negative zero", "ordinary", np.full(n, -0.0, np.float32)
    yield "large, 1e4", "ordinary", gauss(n, 1e4)
    yield "small, 1e-5", "extreme", gauss(n, 1e-5)
    yield "tiny, 1e-30", "extreme", gauss(n, 1e-30)
    yield "denormal", "extreme", gauss(n, 1e-40)
    yield "huge, 1e30", "extreme", gauss(n, 1e30)
    mixed = gauss(n); mixed[5] = 3e38; mixed[400] = 1e-38; yield "one near the largest float", "extreme", mixed


def main(build, out):
    lib = ctypes.CDLL(str(next(Path(build).glob("bin/libggml-base.so"))))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    lib.ggml_row_size.restype = ctypes.c_size_t
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    lib.ggml_commit.restype = lib.ggml_version.restype = ctypes.c_char_p
    to_float = {}
    names = dict(f16="ggml_fp16_to_fp32_row", bf16="ggml_bf16_to_fp32_row")
    for t in [*TYPES, *MORE, *READ]:
        f = getattr(lib, names.get(t) or "dequantize_row_" + (t.replace("_k", "_K")))
        f.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]; f.restype = None
        to_float[t] = f
    listed = list(rows())
    x = np.ascontiguousarray(np.stack([r[2] for r in listed]).astype(np.float32))
    assert x.shape[1] == WIDTH and np.isfinite(x).all()

    def encoded(t, code, x, columns=None):
        """All rows at once and one by one."""
        columns = columns.ctypes.data if columns is not None else None
        size = lib.ggml_row_size(code, WIDTH)
        enc = np.zeros((len(x), size), np.uint8)
        assert lib.ggml_quantize_chunk(code, x.ctypes.data, enc.ctypes.data, 0, len(x), WIDTH, columns) == enc.size
        for i, row in enumerate(x):
            one = np.zeros(size, np.uint8); row = row.copy()
            lib.ggml_quantize_chunk(code, row.ctypes.data, one.ctypes.data, 0, 1, WIDTH, columns)
            assert (one == enc[i]).all(), (t, listed[i][0])
        return enc

    def decoded(t, enc):
        dec = np.zeros((len(enc), WIDTH), np.float32)
        to_float[t](np.ascontiguousarray(enc).ctypes.data, dec.ctypes.data, dec.size)
        return dec

    tensors, more, noise_sha256 = {"input": x}, {"importance": importance()}, {}
    for t, code in {**TYPES, **MORE}.items():
        enc = encoded(t, code, x)
        dec = decoded(t, enc)
        for i, (name, kind, _) in enumerate(listed):
            if kind == "ordinary":
                assert np.isfinite(dec[i]).all(), (t, name)
        into = tensors if t in TYPES else more
        into[t + ".bytes"] = enc
        into[t + ".values"] = dec
        err = [float(np.sqrt(((dec[i] - x[i]) ** 2).mean() / max((x[i] ** 2).mean(), 1e-45))) for i in range(2)]
        print(t, enc.shape[1], "relative error of the first two rows", err)
        if t in WEIGHTED:
            more[t + ".weighted"] = encoded(t, code, x, more["importance"])
            print(t, int((more[t + ".weighted"] != enc).sum()), "bytes differ with importance")
    lib.quantize_row_q8_K_ref.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    for t, code in READ.items():
        size = lib.ggml_row_size(code, WIDTH)
        if t == "q8_k":
            own = np.zeros((4, size), np.uint8)
            lib.quantize_row_q8_K_ref(x[:4].ctypes.data, own.ctypes.data, 4 * WIDTH)
        else:
            # Not compared row by row: the searches of iq1_s look at memory that they have not written. Any bytes do for decoding.
            first, columns = x[:4].copy(), np.maximum(more["importance"], np.float32(1e-3))
            own = np.zeros((4, size), np.uint8)
            lib.ggml_quantize_chunk(code, first.ctypes.data, own.ctypes.data, 0, 4, WIDTH, columns.ctypes.data)
        more[t + ".read"] = np.concatenate([own, Noise(code).blocks(t, 4, size)])
        more[t + ".read_values"] = decoded(t, more[t + ".read"])
        assert np.isfinite(more[t + ".read_values"]).all(), t
        values = decoded(t, Noise(1000 + code).blocks(t, 512, size))
        assert np.isfinite(values).all(), t
        noise_sha256[t] = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
        print(t, size, "is read")
    meta = {
        "rows": json.dumps([[r[0], r[1]] for r in listed]),
        "made_by": "tests/oracles/ggml_blocks.py",
        "source": "ggml " + lib.ggml_version().decode() + ", vendored in the sdist of llama-cpp-python 0.3.36; "
                  "gcc -O2 -DNDEBUG -ffp-contract=off, baseline x86-64",
        "numpy": np.__version__,
        "date": datetime.date.today().isoformat(),
    }
    write(Path(out) / "ggml_blocks.safetensors", tensors, meta)
    write(Path(out) / "ggml_blocks_more.safetensors", more, {**meta, "noise_sha256": json.dumps(noise_sha256)})


def write(path, tensors, meta):
    header, offset, blobs = {"__metadata__": meta}, 0, []
    for name in sorted(tensors):
        a = tensors[name]; b = a.tobytes()
        header[name] = {"dtype": {"float32": "F32", "uint8": "U8"}[str(a.dtype)], "shape": list(a.shape), "data_offsets": [offset, offset + len(b)]}
        offset += len(b); blobs.append(b)
    h = json.dumps(header).encode(); h += b" " * (-len(h) % 8)
    path.write_bytes(struct.pack("<Q", len(h)) + h + b"".join(blobs))
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
