"""transformers' numbers for the demo model and for tiny Llama variants, all in float32 on the CPU.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.23.0 tokenizers safetensors numpy
    venv/bin/python transformers_reference.py MODEL_FOLDER OUT_FOLDER

Writes to OUT_FOLDER
    transformers_demo.json                 token ids, NLL, greedy continuations, perplexities, awkward strings (keys explained below)
    transformers_demo_logits.safetensors   "text0" ... : f32 [positions, vocabulary]; which positions: transformers_demo.json
    tiny_llama_*/                          config.json, model.safetensors (f32), expected.json; random weights, seeded

All logits come from one full forward pass with eager attention; log-probabilities are taken in float64 from the float32 logits.

Perplexity conventions (each over evaluation.txt):
    windows       ids = encode(whole text) without special tokens; cut into consecutive windows of 255 ids, an incomplete last one
                  dropped; each window is preceded by <bos>, runs alone (positions from 0), and all its 255 ids are scored.
    windows_tail  the same, the incomplete last window kept.
    llama_cpp     ids = <bos> + encode(whole text); consecutive chunks of 256 ids, an incomplete last one dropped; the first id of each chunk
                  is overwritten by <bos>; scored: the ids at 129..255 of the chunk (127 a chunk), given all before.
    documents     each text of evaluation.jsonl alone: <bos> + its ids, cut to 256; every id but <bos> is scored; one mean over all.
"""
import datetime, hashlib, json, math, sys
from pathlib import Path
import numpy as np, safetensors, safetensors.torch, tokenizers, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
torch.manual_seed(0)

AWKWARD = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n \n ", "\t", "\r\n", "a", " a", "a ", "  a", "a  b", "a   b    c     d",
    "Hello, world!", "don't can't I'm we've she'll they'd", "DON'T CAN'T", "12", "1234567890", "a1b22c333", "3.14159 and 2,718", "½ ² ① ٣ 五",
    "8 - 3 = 5\n31 + 76 = 107\n", "ÄÖÜß äöü", "e\u0301 versus \u00e9", "İstanbul'da ılık çay, ğ ş", "naïve façade — “quoted” … ok",
    "日本語のテキスト、句読点。", "한국어 문장입니다.", "Привет, мир", "مرحبا بالعالم", "שלום", "नमस्ते", "ไทย", "👍🏽 👨‍👩‍👧‍👦 🇩🇪", "🙂🙂🙂", "x\u200by\u200dz\ufeff",
    "<eos>", "<bos><pad>", "text <eos> more", "<eos", "< eos >", "<|endoftext|>", "[INST]", "{\"id\": 561, \"name\": \"Oskar\"}", "def f(x):\n    return x + 1\n",
    "a\u00a0b\u2003c", "\u0000\u0001\u007f", "line one\nline two\r\nline three\rline four", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "Q: What was the weather like?\nA:",
    "word " * 12, "    indented\n        more", "trailing   ", "\U0001d54f\U0001d550 \U00020000",
]
PROMPTS = ["8 - 3 =", "Echo: red granite Pavel zinc. Again:", "Die alte Katze sitzt"]


def provenance(script=Path(__file__).name):
    return dict(made_by="tests/oracles/" + script, date=datetime.date.today().isoformat(), torch=torch.__version__, transformers=transformers.__version__,
                tokenizers=tokenizers.__version__, safetensors=safetensors.__version__, numpy=np.__version__, device="cpu", arithmetic="float32, eager attention, one thread")


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids])).logits[0]


def nll(logits, ids, first=1):
    """-ln p(ids[i] | ids[..i]) for i from `first`."""
    lp = torch.log_softmax(logits.double(), -1)
    return [-float(lp[i - 1, ids[i]]) for i in range(first, len(ids))]


def summary(values):
    mean = math.fsum(values) / len(values)
    var = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return dict(tokens=len(values), mean_nll=mean, perplexity=math.exp(mean), mean_nll_stderr=math.sqrt(var / len(values)))


def id_hash(ids):
    return hashlib.sha256(np.array(ids, "<u4").tobytes()).hexdigest()


def demo(folder, out):
    model, tok = load(folder), AutoTokenizer.from_pretrained(folder)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = model.config.bos_token_id
    plain = lambda t: raw.encode(t, add_special_tokens=False).ids
    evaluation = [json.loads(l) for l in (folder / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()]
    pick = lambda domain, least: next(d["text"] for d in evaluation if d["domain"] == domain and len(plain(d["text"])) >= least)
    result = dict(provenance=provenance(), model_sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(), texts=[], greedy=[])
    rows = {}
    for i, (domain, least) in enumerate([("story", 59), ("german", 59), ("arithmetic", 40)]):
        text = pick(domain, least)
        ids = [bos] + plain(text)[:59]
        logits = logits_of(model, ids)
        positions = [0, 7, 31, len(ids) - 1]
        rows[f"text{i}"] = logits[positions].contiguous()
        per_token = nll(logits, ids)
        result["texts"].append(dict(domain=domain, text=raw.decode(ids, skip_special_tokens=True), ids=ids, logits_tensor=f"text{i}", logits_positions=positions,
                                    top=[dict(position=p, ids=[int(x) for x in logits[p].topk(8).indices], logits=[float(x) for x in logits[p].topk(8).values]) for p in positions],
                                    nll_total=math.fsum(per_token), nll_per_token=[round(v, 7) for v in per_token]))
        assert plain(result["texts"][-1]["text"]) == ids[1:], "the cut text does not encode to the same ids"
    for prompt in PROMPTS:
        ids = [bos] + plain(prompt); n = len(ids); margins = []
        for _ in range(12):
            top = logits_of(model, ids)[-1].topk(2)
            margins.append(round(float(top.values[0] - top.values[1]), 5)); ids.append(int(top.indices[0]))
        result["greedy"].append(dict(prompt=prompt, prompt_ids=ids[:n], ids=ids[n:], text=raw.decode(ids[n:]), margins=margins, note="12 steps of argmax, not stopped by <eos>"))

    text = (folder / "evaluation.txt").read_text(encoding="utf-8")
    ids = plain(text)
    windows, tail = [], []
    for i in range(0, len(ids), 255):
        w = [bos] + ids[i:i + 255]
        v = nll(logits_of(model, w), w)
        (windows if len(w) == 256 else tail).append(v)
    flat = [v for w in windows for v in w]
    result["perplexity"] = dict(
        context=256, evaluation_ids=dict(count=len(ids), sha256=id_hash(ids)),
        windows=dict(summary(flat), windows=len(windows), nll_total=math.fsum(flat), nll_per_window=[round(math.fsum(w), 6) for w in windows]),
        windows_tail=summary(flat + [v for w in tail for v in w]))
    ids = [bos] + ids
    scored = []
    for i in range(0, len(ids) - 255, 256):
        w = [bos] + ids[i + 1:i + 256]
        scored += nll(logits_of(model, w), w, 129)
    result["perplexity"]["llama_cpp"] = dict(summary(scored), chunks=len(scored) // 127)
    scored = []
    for d in evaluation:
        w = ([bos] + plain(d["text"]))[:256]
        scored += nll(logits_of(model, w), w)
    result["perplexity"]["documents"] = summary(scored)

    ids = plain((folder / "calibration.txt").read_text(encoding="utf-8"))
    result["calibration_ids"] = dict(count=len(ids), sha256=id_hash(ids), hashed="ids as little-endian u32, no special tokens", first=ids[:200])
    result["awkward"] = []
    for s in AWKWARD:
        e = plain(s)
        entry = dict(text=s, ids=e, decoded=raw.decode(e, skip_special_tokens=False), ids_with_special=raw.encode(s).ids)
        t = tok(s, add_special_tokens=False)["input_ids"]
        if t != e:
            entry["transformers_ids"] = t
        result["awkward"].append(entry)
    # Keys of awkward: ids = tokenizers.encode without special tokens; ids_with_special with; transformers_ids only where AutoTokenizer differs from tokenizers
    safetensors.torch.save_file(rows, out / "transformers_demo_logits.safetensors", metadata={k: str(v) for k, v in result["provenance"].items()})
    (out / "transformers_demo.json").write_text(json.dumps(result, ensure_ascii=True, indent=1) + "\n")
    for k in ("windows", "windows_tail", "llama_cpp", "documents"):
        print(k, {a: b for a, b in result["perplexity"][k].items() if a != "nll_per_window"})
    print([g["text"] for g in result["greedy"]], [a["text"] for a in result["awkward"] if "transformers_ids" in a])


LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 24, "rope_type": "llama3"}
BASE = dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            hidden_act="silu", rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1, pad_token_id=None, tie_word_embeddings=False)
TINY = {
    "gqa_untied": dict(),
    "head_dim": dict(head_dim=12, tie_word_embeddings=True, num_key_value_heads=1),
    "rope_llama3": dict(num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-6, theta=500.0, scaling=LLAMA3),
    "biases": dict(num_key_value_heads=4, attention_bias=True, mlp_bias=True),
}


def tiny(out):
    for name, change in TINY.items():
        change = dict(change); theta, scaling = change.pop("theta", 10000.0), change.pop("scaling", None)
        settings = {**BASE, **change}
        rope = dict(scaling or {"rope_type": "default"}, rope_theta=theta)
        config = LlamaConfig(**settings, rope_parameters=rope, dtype="float32")
        config._attn_implementation = "eager"
        generator = torch.Generator().manual_seed(1234)
        model = LlamaForCausalLM(config).float().eval()
        with torch.no_grad():
            for key, p in sorted(model.named_parameters()):
                r = torch.randn(p.shape, generator=generator)
                p.copy_(1 + 0.3 * r if "norm" in key else 0.5 * r if key.endswith("bias") else r * 0.6 if "embed" in key else r * 1.5 / p.shape[1] ** 0.5)
        folder = out / f"tiny_llama_{name}"; folder.mkdir(exist_ok=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        newer = json.loads((folder / "config.json").read_text())
        # config.json as transformers 4 wrote it (rope_theta and rope_scaling at the top); transformers 5's own beside it
        (folder / "config.json").rename(folder / "config_transformers5.json")
        older = {k: v for k, v in newer.items() if k not in ("rope_parameters", "dtype", "transformers_version")}
        older |= dict(rope_theta=theta, rope_scaling=scaling, torch_dtype="float32")
        (folder / "config.json").write_text(json.dumps(older, indent=2) + "\n")
        ids = [0] + [int(x) for x in torch.randint(2, 96, (63,), generator=generator)]
        logits = logits_of(load(folder), ids)
        assert torch.equal(logits, logits_of(model, ids)), name
        if scaling:
            bare = LlamaForCausalLM(LlamaConfig(**settings, rope_parameters=dict(rope_type="default", rope_theta=theta), attn_implementation="eager")).eval()
            bare.load_state_dict(model.state_dict())
            difference = float((logits_of(bare, ids) - logits).abs().max()); assert difference > 0.5, difference
        positions = [0, 1, 9, 31, 63]
        per_token = nll(logits, ids)
        (folder / "expected.json").write_text(json.dumps(dict(
            provenance=provenance(), ids=ids, positions=positions, logits=[[float(f"{v:.8g}") for v in logits[p].tolist()] for p in positions],
            nll_total=math.fsum(per_token), argmax=[int(x) for x in logits.argmax(-1)])) + "\n")
        print(name, (folder / "model.safetensors").stat().st_size, "largest logit", float(logits.abs().max()), "tensors", len(model.state_dict()))


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    tiny(out)
    demo(folder, out)
