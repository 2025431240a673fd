"""llama.cpp's numbers for the demo model: metadata, recipes, quantized bytes, token ids, perplexities.

    llama_cpp_reference.sh does all; or, after llama_cpp_build.sh WORK and the conversions,
    WORK/venv/bin/python llama_cpp_reference.py STEP WORK MODEL_FOLDER OUT_FOLDER          STEP: metadata imatrix recipes tensor_types perplexity

Files and their keys
    llama_cpp_demo_metadata.json   what convert_hf_to_gguf.py writes for the demo: `metadata` (bf16 file), `f32_differs` (keys that differ in the f32 file),
                                   `tensors` in file order [name, ggml shape, type and sha256 in the bf16 file, type and sha256 in the f32 file];
                                   `quantized_metadata` (what llama-quantize adds or changes, Q4_K_M); `tokens` (ids of our texts by llama-tokenize);
                                   `tiny` the same for tests/fixtures/tiny_llama_*, converted to f32 (rope_freqs with its values).
    llama_cpp_imatrix.gguf, .dat   llama-imatrix over calibration.txt, context 256, f32 KV cache: 42 entries; the same in the older form, written by llama-imatrix;
    llama_cpp_imatrix.json         llama-imatrix --show-statistics of that file, row by row as printed.
    llama_cpp_recipes.json         `demo`: recipe -> file bytes, and per 2-D tensor [type, sha256 of its data] (1-D tensors stay f32);
                                   `shapes`: model shape -> parameters and recipe -> tensor role -> [[type, layers], ...] run by run from layer 0
                                   (a plain string where no layer is in the name), by llama-quantize --dry-run on sparse files;
                                   `demo_imatrix` and a shape's `imatrix` the same with --imatrix llama_cpp_imatrix.gguf (for a shape only the recipes whose types differ
                                   from those without, the other names in `imatrix_same`); `imatrix_metadata` what llama-quantize writes of it.
    llama_cpp_tensor_types.json    the demo's types under --tensor-type-file tests/fixtures/tensor_types/NAME, file -> recipe -> tensor -> type.
    llama_cpp_perplexity.json      llama-perplexity over evaluation.txt, context 256: PPL, and against the f32 GGUF mean KLD, same top p and the rest as printed.
"""
import datetime, hashlib, json, os, re, subprocess, sys, tempfile
from importlib.metadata import version
from pathlib import Path
import gguf, numpy as np
import gguf_check

RECIPES = "F32 F16 BF16 Q8_0 MXFP4_MOE Q6_K Q5_K_M Q5_K_S Q5_0 Q5_1 Q4_K_M Q4_K_S Q4_0 Q4_1 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S".split()
# name: layers, width, heads, KV heads, head width, MLP width, vocabulary, tied
SHAPES = {
    "8B": (32, 4096, 32, 8, 128, 14336, 128256, False),
    "8B tied": (32, 4096, 32, 8, 128, 14336, 128256, True),
    "1B tied": (16, 2048, 32, 8, 64, 8192, 128256, True),
    "1B untied": (16, 2048, 32, 8, 64, 8192, 128256, False),
    "1B without grouped queries, tied": (16, 2048, 32, 32, 64, 8192, 128256, True),
    "1B without grouped queries": (16, 2048, 32, 32, 64, 8192, 128256, False),
    "7B without grouped queries": (32, 4096, 32, 32, 128, 11008, 32000, False),
    "7B without grouped queries, tied": (32, 4096, 32, 32, 128, 11008, 32000, True),
    "13B without grouped queries": (40, 5120, 40, 40, 128, 13824, 32000, False),
    "70B": (80, 8192, 64, 8, 128, 28672, 128256, False),
    "70B tied": (80, 8192, 64, 8, 128, 28672, 128256, True),
    "65B without grouped queries": (80, 8192, 64, 64, 128, 22016, 32000, False),
    "65B without grouped queries, tied": (80, 8192, 64, 64, 128, 22016, 32000, True),
    "width 576 tied": (30, 576, 9, 3, 64, 1536, 49152, True),
    "width 576 untied": (30, 576, 9, 3, 64, 1536, 49152, False),
    "width 80, MLP 200 (no multiple of 32)": (6, 80, 5, 1, 16, 200, 1000, False),
    "width 80, MLP 200, tied": (6, 80, 5, 1, 16, 200, 1000, True),
}


def provenance(**more):
    return dict(made_by="tests/oracles/llama_cpp_reference.py", date=datetime.date.today().isoformat(), llama_cpp="vendored in the sdist of llama-cpp-python 0.3.36; build: llama_cpp_build.sh",
                gguf=version("gguf"), **more)


def tool(work, name, *args, check=True, cwd=None):
    env = dict(os.environ, LD_LIBRARY_PATH=f"{work}/build/bin")
    r = subprocess.run([f"{work}/build/bin/{name}", *map(str, args)], capture_output=True, text=True, env=env, errors="replace", cwd=cwd)
    if check and r.returncode:
        raise SystemExit(f"{name} {args}: {r.returncode}\n{r.stdout[-2000:]}\n{r.stderr[-3000:]}")
    return r


def dump(path, value):
    """JSON with one line per innermost list or small mapping: readable, and small in a diff."""
    text = json.dumps(value, ensure_ascii=True, indent=1)
    text = re.sub(r"\[\s+((?:[^\[\]{}]|\\.)*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]" if len(m[1]) < 400 else m[0], text)
    assert json.loads(text) == json.loads(json.dumps(value)), path
    path.write_text(text + "\n")
    print(path, path.stat().st_size)


def metadata(work, model, out):
    bf16, f32 = (gguf_check.read(work / f"out/demo-{t}.gguf") for t in ("bf16", "f32"))
    result = dict(provenance=provenance(converter="convert_hf_to_gguf.py through llama_cpp_convert.py, transformers 5.23.0", note="general.name, size_label come from the folder's name and the parameter count"),
                  version=bf16["version"], alignment=bf16["alignment"], metadata=bf16["metadata"],
                  f32_differs={k: v for k, v in f32["metadata"].items() if bf16["metadata"].get(k) != v},
                  tensors=[[a["name"], a["shape"], a["type"], a["sha256"], b["type"], b["sha256"]] for a, b in zip(bf16["tensors"], f32["tensors"], strict=True) if a["name"] == b["name"]])
    assert len(result["tensors"]) == len(bf16["tensors"])
    with tempfile.TemporaryDirectory(dir=work) as tmp:
        q = Path(tmp) / "q.gguf"
        tool(work, "llama-quantize", work / "out/demo-f32.gguf", q, "Q4_K_M", 1)
        m = gguf_check.read(q)["metadata"]
        result["quantized_metadata"] = {k: v for k, v in m.items() if f32["metadata"].get(k) != v}
        result["quantized_metadata_removed"] = [k for k in f32["metadata"] if k not in m]
    result["tokens"] = {}
    for name in ("evaluation.txt", "calibration.txt"):
        r = tool(work, "llama-tokenize", "-m", work / "out/demo-f32.gguf", "-f", model / name, "--ids", "--no-bos", "--no-parse-special", "--log-disable")
        ids = json.loads(r.stdout[r.stdout.index("["):])
        result["tokens"][name] = dict(count=len(ids), sha256=hashlib.sha256(np.array(ids, "<u4").tobytes()).hexdigest(), hashed="ids as little-endian u32, no special tokens")
    awkward = json.loads((out / "transformers_demo.json").read_text())["awkward"]
    result["tokens"]["awkward_that_differ_from_transformers"] = []
    for a in awkward:
        if "\0" in a["text"] or not a["text"]:
            continue
        with tempfile.NamedTemporaryFile("wb", dir=work) as f:
            f.write(a["text"].encode()); f.flush()
            r = tool(work, "llama-tokenize", "-m", work / "out/demo-f32.gguf", "-f", f.name, "--ids", "--no-bos", "--log-disable")
        ids = json.loads(r.stdout[r.stdout.index("["):])
        if ids != a["ids"]:
            result["tokens"]["awkward_that_differ_from_transformers"].append(dict(text=a["text"], llama_cpp=ids, transformers=a["ids"]))
    result["tiny"] = {}
    for path in sorted((work / "out").glob("tiny-*.gguf")):
        d = gguf_check.read(path)
        entry = dict(metadata={k: v["value"] for k, v in d["metadata"].items()}, tensors=[[t["name"], t["shape"], t["type"], t["sha256"]] for t in d["tensors"]])
        for t in gguf.GGUFReader(path).tensors:
            if t.name == "rope_freqs.weight":
                entry["rope_freqs"] = [float(f"{x:.9g}") for x in t.data.tolist()]
        result["tiny"][path.stem.replace("tiny-", "tiny_llama_")] = entry
    dump(out / "llama_cpp_demo_metadata.json", result)


def sparse(path, shape):
    """A GGUF with the header of a real model and a hole where the data would be."""
    layers, width, heads, kv, head, mlp, vocab, tied = shape
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(layers); w.add_context_length(2048); w.add_embedding_length(width); w.add_feed_forward_length(mlp); w.add_head_count(heads); w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5); w.add_rope_freq_base(1e4); w.add_key_length(head); w.add_value_length(head); w.add_rope_dimension_count(head); w.add_vocab_size(vocab)
    w.add_file_type(1); w.add_tokenizer_model("none")
    total = 0

    def add(name, *dims):
        nonlocal total
        kind = np.float32 if len(dims) == 1 else np.float16
        size = int(np.prod(dims)) * np.dtype(kind).itemsize
        w.add_tensor_info(name, list(dims), np.dtype(kind), size)
        total += (size + 31) // 32 * 32

    if not tied:
        add("output.weight", vocab, width)
    add("token_embd.weight", vocab, width); add("output_norm.weight", width)
    for i in range(layers):
        b = f"blk.{i}."
        add(b + "attn_norm.weight", width); add(b + "ffn_norm.weight", width)
        add(b + "attn_q.weight", heads * head, width); add(b + "attn_k.weight", kv * head, width); add(b + "attn_v.weight", kv * head, width)
        add(b + "attn_output.weight", width, heads * head)
        add(b + "ffn_gate.weight", mlp, width); add(b + "ffn_up.weight", mlp, width); add(b + "ffn_down.weight", width, mlp)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_ti_data_to_file(); w.close()
    start = (path.stat().st_size + 31) // 32 * 32
    os.truncate(path, start + total)


def runs(types, layers):
    roles = {}
    for name, t in types.items():
        m = re.match(r"blk\.(\d+)\.(.*)", name)
        if not m:
            roles[name] = t; continue
        r = roles.setdefault("blk." + m[2], {}); r[int(m[1])] = t
    for role, r in roles.items():
        if isinstance(r, dict):
            assert sorted(r) == list(range(layers)), role
            out = []
            for i in range(layers):
                if out and out[-1][0] == r[i]:
                    out[-1][1] += 1
                else:
                    out.append([r[i], 1])
            roles[role] = out
    return roles


def dry(work, path, recipe, *more):
    r = tool(work, "llama-quantize", *more, "--dry-run", path, recipe, 1, check=False)
    text = r.stdout + r.stderr
    if r.returncode:
        return dict(error=next((l for l in text.splitlines() if "rror" in l or "failed" in l), f"status {r.returncode}"))
    types = {}
    for m in re.finditer(r"\[ *\d+/ *\d+\] +(\S+) +- \[([^\]]*)\], type = +(\w+), size = [^\n(]*(?:\((\w+)\))?", text):
        if sum(int(x) > 1 for x in m[2].split(",")) > 1:
            types[m[1]] = (m[4] or m[3]).lower()
    d = dict(types=types)
    m = re.search(r"quant size *= *([\d.]+) MiB \(([\d.]+) BPW\)", text)
    if m:
        d["quant_size_mib"], d["bpw"] = float(m[1]), float(m[2])
    if "will require an imatrix" in text:
        d["requires_imatrix"] = True
    m = re.search(r"(\d+) of \d+ tensor\(s\) required fallback", text)
    d["fallbacks"] = int(m[1]) if m else 0
    return d


def quantized(work, recipe, *more, cwd=None):
    """The demo under a recipe: what the file has, or the error."""
    with tempfile.TemporaryDirectory(dir=work) as tmp:
        q = Path(tmp) / "q.gguf"
        r = tool(work, "llama-quantize", *more, work / "out/demo-f32.gguf", q, recipe, 1, check=False, cwd=cwd)
        if r.returncode:
            return dict(error=next(l.strip() for l in (r.stdout + r.stderr).splitlines() if "requires" in l or "failed" in l)), {}
        d = gguf_check.read(q)
    assert all(t["type"] == "F32" for t in d["tensors"] if len(t["shape"]) == 1)
    return dict(file_bytes=d["file_bytes"], data_bytes=sum(t["bytes"] for t in d["tensors"]), file_type=d["metadata"]["general.file_type"]["value"],
                tensors={t["name"]: [t["type"].lower(), t["sha256"]] for t in d["tensors"] if len(t["shape"]) > 1}), d["metadata"]


def recipes(work, model, out):
    imatrix = "llama_cpp_imatrix.gguf"
    result = dict(provenance=provenance(source="demo: f32 GGUF converted from the bf16 checkpoint; shapes: f16"), demo={}, demo_imatrix={}, imatrix_metadata={}, shapes={})
    for recipe in RECIPES:
        result["demo"][recipe], _ = quantized(work, recipe)
        result["demo_imatrix"][recipe], m = quantized(work, recipe, "--imatrix", imatrix, cwd=out)
        result["imatrix_metadata"] = result["imatrix_metadata"] or {k: v for k, v in m.items() if k.startswith("quantize.imatrix.")}
    for name, shape in SHAPES.items():
        entry = result["shapes"][name] = dict(zip("layers width heads kv_heads head_width mlp_width vocabulary tied".split(), shape), recipes={}, imatrix={}, imatrix_same=[])
        with tempfile.TemporaryDirectory(dir=work) as tmp:
            path = Path(tmp) / "shape.gguf"
            sparse(path, shape)
            for recipe in RECIPES:
                plain, weighted = (dry(work, path, recipe, *more) for more in ((), ("--imatrix", out / imatrix)))
                for d in (plain, weighted):
                    if "types" in d:
                        d["types"] = runs(d["types"], shape[0])
                entry["recipes"][recipe] = plain
                if weighted.get("types") == plain.get("types"):
                    entry["imatrix_same"].append(recipe)
                else:
                    entry["imatrix"][recipe] = weighted
        print(name, [k for k, v in entry["recipes"].items() if "error" in v], list(entry["imatrix"]), flush=True)
    dump(out / "llama_cpp_recipes.json", result)


def tensor_types(work, model, out):
    result = dict(provenance=provenance(source="bf16 GGUF of the demo; llama-quantize --dry-run --tensor-type-file tests/fixtures/tensor_types/NAME"), files={})
    for path in sorted((out / "tensor_types").glob("*.txt")):
        result["files"][path.name] = {recipe: dry(work, work / "out/demo-bf16.gguf", recipe, "--tensor-type-file", path)["types"] for recipe in ("Q4_K_M", "Q3_K_M", "Q8_0")}
    dump(out / "llama_cpp_tensor_types.json", result)


def imatrix(work, model, out):
    name = "llama_cpp_imatrix"
    # An f32 cache, so that the inputs of attn_output do not carry f16's rounding.
    tool(work, "llama-imatrix", "-m", work / "out/demo-f32.gguf", "-f", "calibration.txt", "-c", 256, "-t", 1, "--no-ppl", "-ctk", "f32", "-ctv", "f32", "-fa", "off",
         "-o", out / f"{name}.gguf", cwd=model)
    tool(work, "llama-imatrix", "-m", "none", "--in-file", f"{name}.gguf", "-c", 256, "-b", 256, "-o", f"{name}.dat", "--output-format", "dat", cwd=out)
    r = tool(work, "llama-imatrix", "-m", "none", "--show-statistics", "--in-file", f"{name}.gguf", "-c", 256, cwd=out)
    columns = "layer tensor sum min max mean std active_percent elements entropy entropy_percent zd_percent cosine".split()
    rows = []
    for line in (r.stdout + r.stderr).splitlines():
        parts = re.sub(r"^[\d.]+ I +", "", line).replace("%", "").split()
        if len(parts) == len(columns) and parts[0].isdigit():
            rows.append(parts[:2] + [float(x) for x in parts[2:]])
    assert len(rows) == 42, len(rows)
    dump(out / f"{name}.json", dict(provenance=provenance(command="llama-imatrix -f calibration.txt -c 256 --no-ppl -ctk f32 -ctv f32 -fa off"), columns=columns, rows=rows))


def perplexity_tools(work, text):
    """Runs llama-perplexity over a text, and reads what it prints: perplexity alone, or all of --kl-divergence."""
    def run(path, *more):
        needed = ["Mean PPL(Q)", "Mean    KLD", "Same top p"] if "--kl-divergence" in more else ["Final estimate"]
        for attempt in range(4):  # on a busy machine the tool's asynchronous log now and then loses lines
            r = tool(work, "llama-perplexity", "-m", path, "-f", text, "-c", 256, "-t", 1, *more)
            log = r.stdout + "\n" + r.stderr
            if all(n in log for n in needed):
                return log
            (work / f"out/incomplete-{attempt}.log").write_text(log)
        raise SystemExit("llama-perplexity printed no result:\n" + log[-1500:])

    def ppl(log):
        m = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", log)
        return dict(perplexity=float(m[1]), stderr=float(m[2]))

    def kld(log):
        d = {}
        for line in log.splitlines():
            m = re.match(r"\s*(\S.*?)\s*[:=]\s*(-?[\d.]+)(?:\s*%)?(?:\s*±\s*([\d.]+))?\s*%?\s*$", line)
            if m and any(w in line for w in ("PPL", "KLD", "top p", "Δp", "Cor(")):
                d[m[1]] = [float(m[2])] + ([float(m[3])] if m[3] else [])
        return d

    return run, ppl, kld


def perplexity(work, model, out):
    text = model / "evaluation.txt"
    base = work / "out/kld_base.bin"
    run, ppl, kld = perplexity_tools(work, text)
    base.unlink(missing_ok=True)
    log = run(work / "out/demo-f32.gguf", "--kl-divergence-base", base)
    result = dict(provenance=provenance(cpu="x86-64, GGML_NATIVE"), convention=(
        "llama-perplexity -c 256: ids = <bos> + encode(evaluation.txt); consecutive chunks of 256 ids, an incomplete last one dropped; the first id of each chunk is replaced by <bos>; "
        "scored: ids 129..255 of each chunk (256 - 128 - 1 = 127 a chunk); PPL = exp(mean NLL); +/- = PPL * stderr of the mean NLL. "
        "KLD = KL(f32 || candidate) in nats over the same positions; the base's log-probabilities are stored in 16 bits and not below 16 nats under the largest, "
        "so that PPL(base) and what is computed from it (the ratio, the difference, the correlation) come out too low where the model is surprised by more: use `perplexity` of F32 instead. "
        "same top p and delta p are shares in percent. "
        "Weights in a quantized type are multiplied with activations rounded to q8_0 or q8_k blocks; the KV cache is f16 unless said otherwise."), models={})
    result["models"]["F32"] = dict(ppl(log), chunks=int(re.search(r"over (\d+) chunks", log)[1]), running=[float(x) for x in re.findall(r"\[\d+\]([\d.]+),", log)])
    result["models"]["F32, KV cache f32, no flash attention"] = ppl(run(work / "out/demo-f32.gguf", "-ctk", "f32", "-ctv", "f32", "-fa", "off"))
    for recipe in "Q8_0 Q4_K_M Q4_0 Q2_K BF16 Q6_K Q5_K_M Q3_K_M Q5_0 Q5_1 Q4_1 F16".split():
        with tempfile.TemporaryDirectory(dir=work) as tmp:
            q = Path(tmp) / "q.gguf"
            tool(work, "llama-quantize", work / "out/demo-f32.gguf", q, recipe, 1)
            d = dict(against_f32=kld(run(q, "--kl-divergence-base", base, "--kl-divergence")))
            d = dict(zip(("perplexity", "stderr"), d["against_f32"].pop("Mean PPL(Q)")), **d)
        result["models"][recipe] = d
        print(recipe, d, flush=True)
        dump(out / "llama_cpp_perplexity.json", result)
    base.unlink()
    exact_cache(work, model, result, run, kld)
    dump(out / "llama_cpp_perplexity.json", result)


def exact_cache(work, model, result, run, kld):
    """The same against the f32 model with a cache of f32 on both sides, as ours is: f16 keys and values move the few positions that make most of the mean."""
    base, cache = work / "out/kld_base_f32_cache.bin", ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
    base.unlink(missing_ok=True)
    run(work / "out/demo-f32.gguf", *cache, "--kl-divergence-base", base)
    for recipe in "Q8_0 Q4_K_M Q2_K".split():
        with tempfile.TemporaryDirectory(dir=work) as tmp:
            q = Path(tmp) / "q.gguf"
            tool(work, "llama-quantize", work / "out/demo-f32.gguf", q, recipe, 1)
            d = dict(against_f32=kld(run(q, *cache, "--kl-divergence-base", base, "--kl-divergence")))
        d = dict(zip(("perplexity", "stderr"), d["against_f32"].pop("Mean PPL(Q)")), **d)
        result["models"][f"{recipe}, KV cache f32, no flash attention"] = d
        print(recipe, d, flush=True)
    base.unlink()


if __name__ == "__main__":
    step, work, model, out = sys.argv[1], *map(Path, sys.argv[2:5])
    dict(metadata=metadata, imatrix=imatrix, recipes=recipes, tensor_types=tensor_types, perplexity=perplexity)[step](work.resolve(), model, out)
