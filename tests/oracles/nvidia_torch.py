"""PyTorch's side of nvidia_run.sh: a synthetic Llama, and its speed in torch.

  nvidia_torch.py make 1b|tiny FOLDER   a Hugging Face folder with made-up bf16 weights
  nvidia_torch.py speed FOLDER          prefill of 512 and decode of 128 tokens in bf16, as JSON

Only torch and safetensors are needed. The decoder is written out below (RMSNorm, rotary embedding, grouped queries, SwiGLU) and runs
eagerly, with torch's fused attention over grouped keys where this version has it. Medians of five runs after a warm-up.
"""

import json
import pathlib
import statistics
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
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    dim = c.get("head_dim") or c["hidden_size"] // heads
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    theta = 1.0 / c["rope_theta"] ** (torch.arange(0, dim, 2, device=device).float() / dim)

    def norm(x, name):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"])).to(x.dtype) * w[name]

    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    try:
        probe = torch.zeros(1, heads, 1, dim, dtype=torch.bfloat16, device=device)
        F.scaled_dot_product_attention(probe, probe[:, :kv], probe[:, :kv], enable_gqa=True)
        grouped = True
    except (TypeError, RuntimeError):
        grouped = False

    def attention(q, k, v, causal):
        if grouped:
            return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal, enable_gqa=True)[0]
        k, v = (t.repeat_interleave(heads // kv, 0) for t in (k, v))
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal)[0]

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
            y = attention(q, keys[:, :start + n], values[:, :start + n], n > 1)
            x = x + y.transpose(0, 1).reshape(n, -1) @ w[s + "self_attn.o_proj.weight"].T
            h = norm(x, s + "post_attention_layernorm.weight")
            gate, up = h @ w[s + "mlp.gate_proj.weight"].T, h @ w[s + "mlp.up_proj.weight"].T
            x = x + (F.silu(gate) * up) @ w[s + "mlp.down_proj.weight"].T
        return norm(x[-1:], "model.norm.weight") @ head.T

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    prompt, more = 512, 128

    def once():
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
        runs = [once() for _ in range(5)]
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
    print(json.dumps(dict(torch=torch.__version__, device=name, memory_bytes_per_second=bandwidth, grouped_attention=grouped,
                          prefill_tokens=prompt, decode_tokens=more, decode_depth=prompt,
                          prefill_tokens_per_second=statistics.median(r[0] for r in runs),
                          decode_tokens_per_second=statistics.median(r[1] for r in runs))))


if __name__ == "__main__":
    {"make": make, "speed": speed}[sys.argv[1]](*sys.argv[2:])
