"""transformers' logits of pruned demo folders that Lapidary wrote, as a fixture.

    LAPIDARY_PRUNED_OUT=FOLDER cargo test -p lapidary-engine --lib -- --ignored writes_pruned_folders
    venv/bin/python transformers_pruned_folder.py FOLDER tests/fixtures/transformers_pruned_demo.safetensors

Set-up: as in transformers_reference.py. FOLDER holds one Hugging Face folder a plan and `refused`, whose layers differ in shape. Writes for each
folder the logits of the last two positions of a fixed text, and "ids"; prints shapes and parameters. Exit status 1 where a tensor is missing, unexpected or
ignored, where a logit is not finite, or where transformers loads what the plan's legality says it refuses.
"""
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

IDS = [0] + [(37 * i * i + 11 * i + 5) % 2045 + 3 for i in range(31)]


@torch.no_grad()
def main(folder, out):
    bad, tensors = [], {"ids": torch.tensor(IDS, dtype=torch.int32)}
    for path in sorted(Path(folder).iterdir()):
        if path.name == "refused":
            continue
        model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        c = model.config
        print(path.name, "heads", c.num_attention_heads, "kv", c.num_key_value_heads, "channels", c.intermediate_size, "layers", c.num_hidden_layers,
              "biases", c.attention_bias, c.mlp_bias, "parameters", sum(p.numel() for p in model.parameters()))
        for k, v in info.items():
            v = [x for x in v if not (k == "missing_keys" and x == "lm_head.weight" and c.tie_word_embeddings)]
            if v:
                bad.append(f"{path.name}: {k}: {v}")
        model.eval()
        logits = model(torch.tensor([IDS])).logits[0]
        cached = model(torch.tensor([IDS[:-1]]), use_cache=True)
        last = model(torch.tensor([IDS[-1:]]), past_key_values=cached.past_key_values).logits[0, -1]
        print("  with and without cache differ by %.2e" % (last - logits[-1]).abs().max())
        if not torch.isfinite(logits).all():
            bad.append(f"{path.name}: logits are not finite")
        tensors[path.name] = logits[-2:].contiguous()
    try:
        AutoModelForCausalLM.from_pretrained(Path(folder) / "refused")
        bad.append("a folder whose layers differ in shape was loaded")
    except Exception as e:
        print("refused:", str(e).splitlines()[0][:200])
    # The rule on head counts that plans for this target are held to.
    try:
        LlamaConfig(hidden_size=256, num_attention_heads=6, num_key_value_heads=3, head_dim=32)
        print("6 heads of width 256: this version of transformers accepts them")
    except Exception as e:
        print("6 heads of width 256:", str(e).splitlines()[-1][:200])
    save_file(tensors, out)
    for b in bad:
        print("PROBLEM", b)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
