"""What the demo computes with llama.cpp's quantized weights, dequantized, in float32: the exact weights-only reference.

    TORCH_PYTHON dequantized_reference.py WORK MODEL_FOLDER OUT_FOLDER        (WORK: after llama_cpp_build.sh and the conversions; gguf from WORK/src/gguf-py)

llama-quantize makes the file, gguf-py's own dequantizer (numpy) decodes it, the rows of q and k are put back into Hugging Face's order, and transformers computes.
Unlike llama-perplexity nothing else is rounded (activations, KV cache and the base's log-probabilities stay as they are), so that a program
can be held to narrow tolerances. Writes OUT_FOLDER/dequantized_demo.json: per recipe

    windows, llama_cpp   perplexity under the conventions that transformers_reference.py describes
    kld_mean ...         KL(original || candidate) in nats, float64, over the scored positions of `windows`; its standard error, median, 99 % and largest value
    same_top             share of those positions where both models' largest logit is the same token
    reverse_kld_mean     KL(candidate || original)
"""
import json, math, os, subprocess, sys, tempfile
from pathlib import Path
import numpy as np, tokenizers, torch

sys.path.insert(0, str(Path(sys.argv[1]) / "src/gguf-py"))
import gguf
from transformers_reference import load, nll, provenance, summary

RECIPES = "F16 Q8_0 Q6_K Q5_K_M Q5_0 Q5_1 Q4_K_M Q4_K_S Q4_0 Q4_1 Q3_K_L Q3_K_M Q3_K_S Q2_K".split()
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def state(path, config):
    out = {}
    for t in gguf.GGUFReader(path).tensors:
        w = gguf.dequantize(t.data, t.tensor_type).astype(np.float32).reshape([int(x) for x in t.shape][::-1])
        parts = t.name.split(".")
        if parts[0] == "blk":
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(parts[2])
            if heads:
                # the converter takes (half, pair) to (pair, half) within each head
                w = w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
            name = f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            name = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[t.name]
        out[name] = torch.from_numpy(np.ascontiguousarray(w))
    return out


@torch.no_grad()
def main(work, folder, out):
    tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tok.encode((folder / "evaluation.txt").read_text(encoding="utf-8"), add_special_tokens=False).ids
    base, model = load(folder), load(folder)
    bos = base.config.bos_token_id
    windows = [[bos] + ids[i:i + 255] for i in range(0, len(ids) - 254, 255)]
    with_bos = [bos] + ids
    chunks = [[bos] + with_bos[i + 1:i + 256] for i in range(0, len(with_bos) - 255, 256)]
    log_p = [torch.log_softmax(base(torch.tensor([w])).logits[0, :-1].double(), -1).float() for w in windows]
    result = dict(provenance=dict(provenance(Path(__file__).name), gguf="gguf-py of llama-cpp-python 0.3.36's sdist"), recipes={})
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory(dir=work) as tmp:
            q = Path(tmp) / "q.gguf"
            subprocess.run([work / "build/bin/llama-quantize", work / "out/demo-f32.gguf", q, recipe, "1"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           env=dict(os.environ, LD_LIBRARY_PATH=f"{work}/build/bin:" + os.environ.get("LD_LIBRARY_PATH", "")))
            missing, unexpected = model.load_state_dict(state(q, base.config), strict=False)
            assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
        nlls, kld, reverse, same = [], [], [], []
        for w, lp in zip(windows, log_p):
            logits = model(torch.tensor([w])).logits[0]
            nlls += nll(logits, w)
            lp, lq = lp.double(), torch.log_softmax(logits[:-1].double(), -1)
            kld += (lp.exp() * (lp - lq)).sum(-1).tolist(); reverse += (lq.exp() * (lq - lp)).sum(-1).tolist()
            same += (lp.argmax(-1) == lq.argmax(-1)).tolist()
        scored = [v for c in chunks for v in nll(model(torch.tensor([c])).logits[0], c, 129)]
        k = np.array(kld)
        result["recipes"][recipe] = dict(windows=summary(nlls), llama_cpp=summary(scored), kld_mean=float(k.mean()), kld_mean_stderr=float(k.std(ddof=1) / math.sqrt(len(k))),
                                         kld_median=float(np.median(k)), kld_p99=float(np.quantile(k, 0.99)), kld_max=float(k.max()), reverse_kld_mean=float(np.mean(reverse)), same_top=float(np.mean(same)))
        print(recipe, result["recipes"][recipe], flush=True)
    (out / "dequantized_demo.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), Path(sys.argv[3]))
