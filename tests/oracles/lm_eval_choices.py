"""What lm-evaluation-harness itself chooses on the demo's multiple-choice items.

    pip install lm_eval==0.4.13 transformers torch
    python tests/oracles/lm_eval_choices.py > tests/fixtures/lm_eval_choices.json

Items are every n-th of each multiple-choice slice of assets/demo/tasks.jsonl. The task is made as a YAML task of the
harness is made (prompt, choices, the delimiter " "), the model is transformers' in float32, and the numbers are the
harness's own: log-likelihoods of every choice, acc and acc_norm of every item.
"""

import datetime
import importlib.metadata
import json
import pathlib
import sys
import tempfile

import torch
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
PER_SLICE = 20


def items():
    slices = {}
    for line in (ROOT / "assets/demo/tasks.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        if item["type"] == "multiple_choice" and all(choice.startswith(" ") for choice in item["choices"]):
            slices.setdefault((item["task"], item["slice"]), []).append(item)
    for members in slices.values():
        count = min(PER_SLICE, len(members))
        for nth in range(count):
            yield members[nth * len(members) // count]


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chosen = list(items())
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "items.jsonl"
        rows = [{"id": i["id"], "prompt": i["prompt"], "choices": [c[1:] for c in i["choices"]], "answer": i["answer"]} for i in chosen]
        data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        task = ConfigurableTask(
            config={
                "task": "lapidary_demo",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{prompt}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "answer",
                "target_delimiter": " ",
                "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            }
        )
        model = HFLM(
            pretrained=str(ROOT / "assets/demo"), dtype="float32", device="cpu", batch_size=1, add_bos_token=True
        )
        result = simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    out = []
    for sample in result["samples"]["lapidary_demo"]:
        likelihoods = [response[0] for response in sample["filtered_resps"]]
        out.append(
            {
                "id": sample["doc"]["id"],
                "log_likelihoods": [round(float(value), 5) for value in likelihoods],
                "acc": int(sample["acc"]),
                "acc_norm": int(sample["acc_norm"]),
            }
        )
    out.sort(key=lambda item: item["id"])
    version = importlib.metadata.version
    provenance = {
        "made_by": "tests/oracles/lm_eval_choices.py",
        "date": str(datetime.date.today()),
        **{name: version(name) for name in ["lm_eval", "transformers", "torch"]},
        "arithmetic": "float32 on the CPU, BOS in front of every prompt",
    }
    json.dump({"provenance": provenance, "items": out}, sys.stdout, indent=None, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
