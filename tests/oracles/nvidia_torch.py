"""PyTorch's side of nvidia_run.sh: a synthetic Llama, its speed in torch, and the table of all figures.

  nvidia_torch.py make 1b|tiny FOLDER   a Hugging Face folder with made-up bf16 weights
  nvidia_torch.py speed FOLDER          prefill of 512 and decode of 128 tokens in bf16, as JSON
  nvidia_torch.py summary RESULTS       the figures of a run as a table

Only torch and safetensors are needed; the decoder is written out below (RMSNorm, rotary embedding, grouped queries, SwiGLU).
"""

import json
import pathlib
import sys
import time

SHAPES = {
    "1b": dict(layers=16, hidden=2048, mlp=8192, heads=32, kv=8, dim=64, vocab=32000),
    "tiny": dict(layers=2, hidden=256, mlp=512, heads=4, kv=2, dim=64, vocab=512),
}


def make(size, folder):
    import torch
    from safetensors.torch import save_file

    s = SHAPES[size]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    tensors = {}

    def matrix(name, rows, cols):
        w = torch.randn(rows, cols) * 0.02
        w[:, ::317] *= 6
        tensors[name] = w.to(torch.bfloat16)

    matrix("model.embed_tokens.weight", s["vocab"], s["hidden"])
    tensors["model.norm.weight"] = torch.ones(s["hidden"], dtype=torch.bfloat16)
    for i in range(s["layers"]):
        stem = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{stem}{norm}.weight"] = torch.ones(s["hidden"], dtype=torch.bfloat16)
        q, kv = s["heads"] * s["dim"], s["kv"] * s["dim"]
        for name, rows, cols in (("q", q, s["hidden"]), ("k", kv, s["hidden"]), ("v", kv, s["hidden"]), ("o", s["hidden"], q)):
            matrix(f"{stem}self_attn.{name}_proj.weight", rows, cols)
        for name, rows, cols in (("gate", s["mlp"], s["hidden"]), ("up", s["mlp"], s["hidden"]), ("down", s["hidden"], s["mlp"])):
            matrix(f"{stem}mlp.{name}_proj.weight", rows, cols)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=s["hidden"], intermediate_size=s["mlp"],
        num_hidden_layers=s["layers"], num_attention_heads=s["heads"], num_key_value_heads=s["kv"], head_dim=s["dim"],
        vocab_size=s["vocab"], rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=4096,
        tie_word_embeddings=True, torch_dtype="bfloat16", hidden_act="silu", bos_token_id=1, eos_token_id=2,
    )
    (folder / "config.json").write_text(json.dumps(config))


def speed(folder):
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    folder = pathlib.Path(folder)
    c = json.loads((folder / "config.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    w = {k: v.to(device) for k, v in load_file(folder / "model.safetensors").items()}
    heads, kv, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    theta = 1.0 / c["rope_theta"] ** (torch.arange(0, dim, 2, device=device).float() / dim)

    def norm(x, name):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"])).to(x.dtype) * w[name]

    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(ids, start, caches):
        n = ids.shape[0]
        x = w["model.embed_tokens.weight"][ids]
        angle = torch.outer(torch.arange(start, start + n, device=device).float(), theta)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for i in range(c["num_hidden_layers"]):
            s = f"model.layers.{i}."
            h = norm(x, s + "input_layernorm.weight")
            part = lambda name, count: (h @ w[f"{s}self_attn.{name}_proj.weight"].T).view(n, count, dim).transpose(0, 1)
            q, k, v = rotate(part("q", heads), cos, sin), rotate(part("k", kv), cos, sin), part("v", kv)
            keys, values = caches[i]
            keys[:, start:start + n], values[:, start:start + n] = k, v
            k, v = keys[:, :start + n], values[:, :start + n]
            k, v = (t.repeat_interleave(heads // kv, 0) for t in (k, v))
            y = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=n > 1)[0]
            x = x + y.transpose(0, 1).reshape(n, -1) @ w[s + "self_attn.o_proj.weight"].T
            h = norm(x, s + "post_attention_layernorm.weight")
            gate, up = h @ w[s + "mlp.gate_proj.weight"].T, h @ w[s + "mlp.up_proj.weight"].T
            x = x + (F.silu(gate) * up) @ w[s + "mlp.down_proj.weight"].T
        return norm(x[-1:], "model.norm.weight") @ w["model.embed_tokens.weight"].T

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def once(prompt=512, more=128):
        caches = [tuple(torch.zeros(kv, prompt + more, dim, device=device, dtype=torch.bfloat16) for _ in range(2))
                  for _ in range(c["num_hidden_layers"])]
        ids = torch.randint(0, c["vocab_size"], (prompt,), device=device)
        wait(); start = time.perf_counter()
        token = forward(ids, 0, caches).argmax(-1)
        wait(); middle = time.perf_counter()
        for at in range(prompt, prompt + more):
            token = forward(token, at, caches).argmax(-1)
        wait()
        return prompt / (middle - start), more / (time.perf_counter() - middle)

    with torch.inference_mode():
        once()
        runs = [once() for _ in range(3)]
        bandwidth = None
        if device == "cuda":
            a = torch.empty(1 << 30, dtype=torch.uint8, device=device)
            b = torch.empty_like(a)
            b.copy_(a); wait(); start = time.perf_counter()
            for _ in range(20):
                b.copy_(a)
            wait()
            bandwidth = 20 * 2 * a.numel() / (time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps(dict(torch=torch.__version__, device=name, memory_bytes_per_second=bandwidth,
                          prefill_tokens_per_second=max(r[0] for r in runs),
                          decode_tokens_per_second=max(r[1] for r in runs))))


def summary(folder):
    folder = pathlib.Path(folder)

    def read(name):
        try:
            return json.loads((folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}

    def find(document, key):
        """The first number of this name, however deep."""
        if isinstance(document, dict):
            if isinstance(document.get(key), (int, float)):
                return document[key]
            document = list(document.values())
        found = (find(part, key) for part in document) if isinstance(document, list) else ()
        return next((value for value in found if value is not None), None)

    print("\n## Figures\n")
    torch = read("torch")
    bandwidth = torch.get("memory_bytes_per_second")
    kernels = read("scan").get("kernels", [])
    scans = {(k["kernel"], k["format"]): k.get("weights_per_second", 0) for k in kernels}
    print("| error scan | device, G weights/s | times the CPU | share of its memory bandwidth (bf16 read once) |\n|---|---|---|---|")
    for (kernel, form), rate in scans.items():
        if kernel == "scan_device":
            cpu = max((r for (k, f), r in scans.items() if k == "scan" and f == form), default=0)
            share = f"{rate * 2 / bandwidth:.3f}" if bandwidth else "not known"
            print(f"| {form} | {rate / 1e9:.3f} | {rate / cpu if cpu else float('nan'):.2f} | {share} |")
    print("\n| tokens a second | prefill 512 | decode 128 |\n|---|---|---|")
    speed = lambda run: f"{run['prefill_tokens_per_second']:.0f} | {run['decode_tokens_per_second']:.1f}"
    for recipe in ("BF16", "Q8_0", "Q4_K_S"):
        for where in ("device", "cpu"):
            run = read(f"bench_{recipe}_{where}")
            if run:
                print(f"| ours, {recipe}, {run['device']} | {speed(run)} |")
        run = read(f"candle_{recipe}")
        if run:
            print(f"| candle's products alone, {recipe}, {run['device']} | {speed(run)} |")
    if torch:
        print(f"| torch {torch['torch']}, bf16, {torch['device']} | {torch['prefill_tokens_per_second']:.0f} | {torch['decode_tokens_per_second']:.1f} |")
    print("\n| model in | perplexity on the device | on the CPU | difference |\n|---|---|---|---|")
    for path in sorted(folder.glob("format_*_device.json")):
        form = path.stem.removeprefix("format_").removesuffix("_device")
        ours, cpu = (find(read(f"format_{form}_{where}"), "perplexity") for where in ("device", "cpu"))
        if ours and cpu:
            print(f"| {form} | {ours:.5f} | {cpu:.5f} | {ours / cpu - 1:+.2e} |")
    times = dict(line.split("\t") for line in (folder / "times.tsv").read_text().splitlines())
    print("\n| work | seconds on the device | on the CPU | times the CPU |\n|---|---|---|---|")
    for work in ("kld", "fisher", "mask", "evaluate"):
        ours, cpu = (float(times.get(f"{work}_{where}", "nan")) for where in ("device", "cpu"))
        print(f"| {work} | {ours:.2f} | {cpu:.2f} | {cpu / ours:.2f} |")
    one, other = read("kld_map_device"), read("kld_map_cpu")
    pairs = [(a["value"], b["value"]) for r, s in zip(one.get("rows", []), other.get("rows", []))
             for a, b in zip(r["cells"], s["cells"]) if a and b and b["value"] > 0]
    if pairs:
        far = sorted(abs(a / b - 1) for a, b in pairs)
        print(f"\nKLD map: {len(pairs)} cells, median difference from the CPU's {far[len(far) // 2]:.4f}, largest {far[-1]:.4f} of the value.")


if __name__ == "__main__":
    {"make": make, "speed": speed, "summary": summary}[sys.argv[1]](*sys.argv[2:])
