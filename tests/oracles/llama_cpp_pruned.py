"""llama.cpp's perplexity of pruned GGUF files that Lapidary wrote, as a fixture.

    LAPIDARY_PRUNED_OUT=FOLDER cargo test -p lapidary-engine --lib -- --ignored writes_pruned_ggufs
    python llama_cpp_pruned.py FOLDER WORK_FOLDER tests/fixtures/llama_cpp_pruned.json

Needs nothing but Python; WORK_FOLDER: as in llama_cpp_build.sh, which must have run. Runs llama-perplexity at context 256 over the demo's evaluation
text on every file (the convention is in llama_cpp_perplexity.json). Exit status 1 where llama.cpp refuses a file, or where the file does not say that it
has the architecture that its name begins with.
"""
import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path


def architecture_of(file):
    head = file.read_bytes()[:4096]
    at = head.index(b"general.architecture") + len(b"general.architecture") + 4
    length = int.from_bytes(head[at : at + 8], "little")
    return head[at + 8 : at + 8 + length].decode()


def main(folder, work, out):
    root = Path(__file__).resolve().parents[2]
    text = root / "assets" / "demo" / "evaluation.txt"
    binary = Path(work) / "build" / "bin"
    found, bad = {}, 0
    for file in sorted(Path(folder).glob("*.gguf")):
        command = [str(binary / "llama-perplexity"), "-m", str(file), "-f", str(text), "-c", "256", "-t", "2"]
        for _ in range(3):  # on a busy machine the tool's asynchronous log now and then loses its last lines
            run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_LIBRARY_PATH": str(binary)})
            log = run.stdout + run.stderr
            estimate = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", log)
            if estimate or run.returncode:
                break
        architecture = architecture_of(file)
        if not estimate or architecture != file.stem.split("-")[0]:
            print(file.name, "status", run.returncode, "architecture", architecture, log[-2000:])
            bad += 1
            continue
        found[file.stem] = float(estimate[1])
        print(file.stem, architecture, estimate[1], "+/-", estimate[2])
    provenance = {
        "made_by": "tests/oracles/llama_cpp_pruned.py",
        "date": datetime.date.today().isoformat(),
        "llama_cpp": "vendored in the sdist of llama-cpp-python 0.3.36; build: llama_cpp_build.sh",
    }
    Path(out).write_text(json.dumps({"provenance": provenance, "perplexity": found}, indent=1) + "\n")
    return int(bad > 0 or not found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
