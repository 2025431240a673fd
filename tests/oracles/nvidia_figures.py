"""What nvidia_run.sh knows of its outputs: whether a device did the work, and the tables of all figures.

  nvidia_figures.py runs DEVICES.json WORK     exit 0 if a device, and not the CPU, will do WORK: passes, models …
  nvidia_figures.py encoded PASS.json          exit 0 if a device encoded tensors to the end; says how many, or why not
  nvidia_figures.py summary FOLDER             the figures of a run as tables

No figure of a device is shown that the CPU has made, wholly or after a failure: its row says so instead. Nothing but Python's own
library is needed.
"""

import json
import pathlib
import sys


def read(path):
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError):
        return {}


def values(document, key):
    """What this name stands for, wherever it is in a document."""
    if isinstance(document, dict):
        own = [document[key]] if key in document else []
        return own + [value for part in document.values() for value in values(part, key)]
    return [value for part in document for value in values(part, key)] if isinstance(document, list) else []


def first_number(document, key):
    return next((value for value in values(document, key) if isinstance(value, (int, float))), None)


def devices(document):
    """Names of the devices that results carry."""
    return [value for value in values(document, "device") if isinstance(value, str)]


def is_cpu(name):
    """The CPU by itself, or after a device that failed."""
    return name.lower() == "cpu" or "then" in name.lower().replace(",", " ").split()


def fault(document, place):
    """Why a document is no figure of the `device` or of the `cpu`; empty where it is one."""
    if not document:
        return "not measured"
    named = devices(document)
    if place == "cpu":
        others = [name for name in named if name.lower() != "cpu"]
        return f"not the CPU: {others[0]}" if others else ""
    wrong = [name for name in named if is_cpu(name)]
    if wrong:
        return f"not the device: {wrong[0]}"
    return "" if named else "no word of a device"


def runs(path, work):
    chosen = [device for device in read(path).get("devices", []) if device["kind"] != "cpu" and work in device["will_run"]]
    return 0 if chosen else 1


def encoded(path):
    document = read(path)
    why = fault({"device": document.get("device")}, "device") if document else "no result"
    if not why and document.get("device_tensors", 0) <= 0:
        why = "the device encoded nothing"
    print(why or f"{document['device_tensors']} tensors by {document['device']}")
    return 1 if why else 0


class Run:
    """The outputs of a run."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def of(self, name):
        return read(self.folder / f"{name}.json")

    def good(self, name):
        """A document and why it is no figure of the place that its name ends in."""
        document = self.of(name)
        return document, fault(document, "cpu" if name.endswith("_cpu") else "device")

    def seconds(self, name):
        try:
            return float((self.folder / f"{name}.seconds").read_text())
        except (OSError, ValueError):
            return None

    def text(self, name):
        try:
            return (self.folder / name).read_text().strip()
        except OSError:
            return ""


def scans(run):
    document = run.of("scan")
    bandwidth = run.of("torch").get("memory_bytes_per_second")
    rates = {}
    for row in document.get("kernels", []):
        key = row["kernel"], row["format"]
        if row["weights_per_second"] > rates.get(key, {}).get("weights_per_second", 0):
            rates[key] = row
    if not rates:
        return
    print(f"\nError scans of bf16 weights on {document.get('scan_device')}: `up` with their upload, `there` of a piece that is there already.")
    print(f"The device's memory copies {bandwidth / 1e9:.0f} GB/s (torch).\n" if bandwidth else "The device's bandwidth is not known: torch did not run.\n")
    print("| error scan | weights | up, G weights/s | times the CPU | there, G weights/s | there, share of its memory bandwidth (f32 read once) |")
    print("|---|---|---|---|---|---|")
    speed = lambda kernel, form: rates.get((kernel, form), {}).get("weights_per_second")
    for (kernel, form), row in rates.items():
        if kernel != "scan_device":
            continue
        up, cpu, there = (speed(name, form) for name in ("scan_device", "scan", "scan_resident"))
        times = f"{up / cpu:.2f}" if cpu else "–"
        share = f"{there * 4 / bandwidth:.3f}" if there and bandwidth else "–"
        print(f"| {form} | {row['rows'] * row['cols'] / 1e6:.0f} M | {up / 1e9:.3f} | {times} | {f'{there / 1e9:.3f}' if there else '–'} | {share} |")


def auto(run):
    rates = run.of("auto").get("rates")
    if rates:
        print("\n| what `auto` measured | device, G weights/s | CPU, G weights/s | times the CPU |\n|---|---|---|---|")
        for work, rate in rates.items():
            print(f"| {work} | {rate['device'] / 1e9:.3f} | {rate['cpu'] / 1e9:.3f} | {rate['device'] / rate['cpu']:.2f} |")


def speeds(run):
    rows = []
    for recipe in ("BF16", "Q8_0", "Q4_K_S"):
        rows += [(f"ours, {recipe}", f"bench_{recipe}_device"), (f"ours, {recipe}", f"bench_{recipe}_cpu"),
                 (f"candle's products alone, {recipe}", f"candle_{recipe}")]
    rows.append((f"torch {run.of('torch').get('torch', '')}, bf16", "torch"))
    if not any(run.of(name) for _, name in rows):
        return
    print(f"\nTokens a second (medians) of {run.text('model.txt') or 'a model whose name is not known'}.\n")
    print("| | where | prompt | prefill | written, after | decode |\n|---|---|---|---|---|---|")
    for words, name in rows:
        document, why = run.good(name)
        if why:
            print(f"| {words} ({name}) | {why} | | | | |")
            continue
        written = f"{document['decode_tokens']}, {document.get('decode_depth', 0)}"
        print(f"| {words} | {document['device']} | {document['prefill_tokens']} | {document['prefill_tokens_per_second']:.0f} | {written} "
              f"| {document['decode_tokens_per_second']:.1f} |")


def perplexities(run):
    paths = sorted(run.folder.glob("format_*_device.json"))
    if paths:
        print("\n| demo in | perplexity on the device | on the CPU | difference |\n|---|---|---|---|")
    for path in paths:
        form = path.stem.removeprefix("format_").removesuffix("_device")
        (ours, why), (cpu, other) = run.good(f"format_{form}_device"), run.good(f"format_{form}_cpu")
        if why or other:
            print(f"| {form} | {why or other} | | |")
            continue
        ours, cpu = first_number(ours, "perplexity"), first_number(cpu, "perplexity")
        print(f"| {form} | {ours:.5f} | {cpu:.5f} | {ours / cpu - 1:+.2e} |")


def times(run):
    works = [("kld_model", f"KLD map by layer of {run.text('model.txt') or 'the model'}"), ("kld", "KLD map by tensor of the demo"),
             ("fisher", "gradients of the demo"), ("mask", "2:4 mask of the demo"), ("evaluate", "evaluation of the demo")]
    if not any(run.of(f"{work}_device") for work, _ in works):
        return
    print("\n| work, start of the program included | seconds on the device | on the CPU | times the CPU |\n|---|---|---|---|")
    for work, words in works:
        (_, why), (_, other) = run.good(f"{work}_device"), run.good(f"{work}_cpu")
        if why or other:
            print(f"| {words} | {why or other} | | |")
            continue
        ours, cpu = run.seconds(f"{work}_device"), run.seconds(f"{work}_cpu")
        print(f"| {words} | {ours:.2f} | {cpu:.2f} | {cpu / ours:.2f} |")


def maps(run):
    for work in ("kld_model", "kld"):
        (one, why), (other, of_cpu) = run.good(f"{work}_device"), run.good(f"{work}_cpu")
        if why or of_cpu:
            continue
        pairs = [(a["value"], b["value"]) for r, s in zip(one["rows"], other["rows"])
                 for a, b in zip(r["cells"], s["cells"]) if a and b and b["value"] > 0]
        far = sorted(abs(a / b - 1) for a, b in pairs)
        if far:
            print(f"\n{work}: {len(pairs)} cells, median difference from the CPU's {far[len(far) // 2]:.4f}, largest {far[-1]:.4f} of the value.")


def profiles(run):
    (one, why), (other, of_cpu) = run.good("profile_device"), run.good("profile_cpu")
    if not one and not other:
        return
    if why or of_cpu:
        print(f"\nProfile of the demo: NO PROOF: {why or of_cpu}.")
        return
    differing = [a["name"] for a, b in zip(one["tensors"], other["tensors"]) if a != b]
    same = len(one["tensors"]) == len(other["tensors"]) and not differing
    print(f"\nProfile of the demo on {one['device']}: " + (f"all of {len(one['tensors'])} tensors equal the CPU's." if same else f"OTHER FIGURES of {', '.join(differing[:5])}."))


def summary(folder):
    run = Run(folder)
    print("\n## Figures")
    kinds = {device["kind"] for name in ("devices", "devices_models") for device in run.of(name).get("devices", []) if device["is_chosen"]}
    if "software" in kinds:
        print("\nA rehearsal: what computes in software stands in for a GPU, and the speeds mean nothing.")
    for table in (profiles, scans, auto, speeds, perplexities, times, maps):
        table(run)
    return 0


if __name__ == "__main__":
    sys.exit({"runs": runs, "encoded": encoded, "summary": summary}[sys.argv[1]](*sys.argv[2:]))
