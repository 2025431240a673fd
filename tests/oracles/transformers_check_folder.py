"""Does a Hugging Face folder that Lapidary exported load in transformers, and what does it compute?

    venv/bin/python transformers_check_folder.py FOLDER [ORIGINAL_FOLDER]

Set-up: as in transformers_reference.py. Prints the parameters, the types in the file, the largest logits after a fixed text, its NLL,
and with ORIGINAL_FOLDER the mean KL divergence and top-token agreement on that text. Exit status 1 where a tensor is missing, unexpected or ignored,
where a logit is not finite, or where the tokenizers disagree.
"""
import sys
from pathlib import Path
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "The code for walnut is 9420. The code for tulip is 8806. Die alte Katze sitzt neben dem neuen Stuhl.\n8 - 3 = 5\n31 + 76 = 107"


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    return model.eval(), info


@torch.no_grad()
def main(folder, original=None):
    bad = []
    types = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            for k in f.keys():
                d = f.get_slice(k).get_dtype(); types[d] = types.get(d, 0) + 1
    model, info = load(folder)
    print("tensors by type:", types, "parameters:", sum(p.numel() for p in model.parameters()), type(model).__name__)
    for k, v in info.items():
        v = list(v)
        if k == "missing_keys" and model.config.tie_word_embeddings:
            v = [x for x in v if x != "lm_head.weight"]
        if v:
            bad.append(f"{k}: {v}")
    tok = AutoTokenizer.from_pretrained(folder)
    ids = tok(TEXT, add_special_tokens=False)["input_ids"]
    ids = ([model.config.bos_token_id] if model.config.bos_token_id is not None else []) + ids
    logits = model(torch.tensor([ids])).logits[0]
    lp = torch.log_softmax(logits.double(), -1)
    top = logits[-1].topk(5)
    print("ids:", len(ids), "last position:", [(int(i), tok.decode([int(i)]), round(float(v), 4)) for v, i in zip(top.values, top.indices)])
    print("NLL per token: %.6f" % -lp[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean())
    if not torch.isfinite(logits).all():
        bad.append("logits are not finite")
    if original:
        other, _ = load(original)
        theirs = AutoTokenizer.from_pretrained(original)(TEXT, add_special_tokens=False)["input_ids"]
        if theirs != ids[-len(theirs):]:
            bad.append("token ids differ from the original's")
        lq = torch.log_softmax(other(torch.tensor([ids])).logits[0].double(), -1)
        print("KL(original || folder) %.6g nats, same top %.4f" % ((lq.exp() * (lq - lp)).sum(-1).mean(), (lq.argmax(-1) == lp.argmax(-1)).double().mean()))
    for b in bad:
        print("PROBLEM", b)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
