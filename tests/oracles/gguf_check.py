"""Reads any GGUF with the PyPI package `gguf` (llama.cpp's own reader) and prints what is in it.

    venv/bin/python gguf_check.py FILE.gguf [--json] [--no-hash] [--against OTHER.gguf]

--json      one JSON document: header, metadata (arrays longer than 32 as length, first values and hash), tensors (type, ggml shape, bytes, sha256).
--no-hash   tensors without sha256 (reads the header only).
--against   compares metadata and tensors with another file and lists every difference; exit status 1 where there is any.

Hashes: an array's is over its payload as it lies in the file (numbers little-endian; each string as u64 length + bytes);
a tensor's over its data without padding.
"""
import argparse, hashlib, json, math, struct, sys
from importlib.metadata import version
from pathlib import Path
import gguf
from gguf import GGUFReader, GGUFValueType, GGML_QUANT_SIZES


def plain(v):
    v = v.item() if hasattr(v, "item") else v
    if isinstance(v, float) and not math.isfinite(v):
        return repr(v)
    return v


def value(field):
    kind = field.types[0]
    if kind == GGUFValueType.ARRAY:
        inner = field.types[-1]
        if inner == GGUFValueType.STRING:
            raw = [bytes(field.parts[i]) for i in field.data]
            payload = b"".join(struct.pack("<Q", len(b)) + b for b in raw)
            items = [b.decode("utf-8", "replace") for b in raw]
        else:
            payload = b"".join(field.parts[i].tobytes() for i in field.data)
            items = [plain(x) for i in field.data for x in field.parts[i].tolist()]
        d = dict(type=f"array of {inner.name.lower()}", length=len(items), sha256=hashlib.sha256(payload).hexdigest())
        if len(items) <= 32:
            d["value"] = items
        else:
            d["first"] = items[:16]; d["last"] = items[-4:]
        return d
    if kind == GGUFValueType.STRING:
        return dict(type="string", value=bytes(field.parts[-1]).decode("utf-8", "replace"))
    return dict(type=kind.name.lower(), value=plain(field.parts[-1][0]))


def read(path, hashes=True):
    r = GGUFReader(path)
    meta = {k: value(f) for k, f in r.fields.items() if not k.startswith("GGUF.")}
    tensors = []
    for t in r.tensors:
        n = int(t.n_elements); block, size = GGML_QUANT_SIZES[t.tensor_type]
        assert t.n_bytes == n // block * size and int(t.shape[0]) % block == 0, t.name
        assert (int(t.data_offset) - int(r.data_offset)) % r.alignment == 0, t.name
        d = dict(name=t.name, type=t.tensor_type.name, shape=[int(x) for x in t.shape], bytes=int(t.n_bytes), offset=int(t.data_offset) - int(r.data_offset))
        if hashes:
            d["sha256"] = hashlib.sha256(t.data.tobytes()).hexdigest()
        tensors.append(d)
    head = {k: plain(r.fields["GGUF." + k].parts[-1][0]) for k in ("version", "tensor_count", "kv_count")}
    return dict(file=Path(path).name, file_bytes=Path(path).stat().st_size, **head, alignment=r.alignment, data_offset=int(r.data_offset), metadata=meta, tensors=tensors)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("file"); p.add_argument("--json", action="store_true"); p.add_argument("--no-hash", action="store_true"); p.add_argument("--against")
    a = p.parse_args()
    d = read(a.file, not a.no_hash)
    if a.json:
        json.dump(d, sys.stdout, ensure_ascii=True, indent=1); print()
    elif not a.against:
        print(f"{d['file']}: GGUF v{d['version']}, {d['file_bytes']} bytes, {d['tensor_count']} tensors, {d['kv_count']} keys, alignment {d['alignment']}, read by gguf {version('gguf')}")
        for k, v in d["metadata"].items():
            print(f"  {k} ({v['type']}) = {v.get('value', v.get('first'))}"[:200])
        for t in d["tensors"]:
            print(f"  {t['name']:32} {t['type']:6} {str(t['shape']):16} {t['bytes']:>10} {t.get('sha256', '')[:16]}")
    if a.against:
        e = read(a.against, not a.no_hash); n = 0
        for what, x, y in (("metadata", d["metadata"], e["metadata"]),
                           ("tensor", *({t["name"]: {k: v for k, v in t.items() if k not in ("name", "offset")} for t in q["tensors"]} for q in (d, e)))):
            for k in list(dict.fromkeys([*y, *x])):
                if x.get(k) != y.get(k):
                    n += 1; print(f"{what} {k}:\n   this   {str(x.get(k))[:300]}\n   other  {str(y.get(k))[:300]}")
        print(n, "differences")
        return 1 if n else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
