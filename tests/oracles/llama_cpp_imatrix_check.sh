#!/usr/bin/env bash
# Lapidary's importance matrix in llama.cpp's hands: llama-quantize must take it, and both programs must make the same
# tensors of it.
#
#   tests/oracles/llama_cpp_imatrix_check.sh LAPIDARY_BINARY [WORK_FOLDER]   default: ${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}
#
# WORK_FOLDER as llama_cpp_reference.sh leaves it (build/, venv/, out/demo-f32.gguf).
set -euo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
LAPIDARY="$(realpath "$1")"
WORK="$(cd "${2:-${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}}" && pwd)"
OUT="$(mktemp -d)"; trap 'rm -rf "$OUT"' EXIT
export LD_LIBRARY_PATH="$WORK/build/bin"
cd "$OUT"
"$LAPIDARY" calibrate demo -o demo.imatrix.gguf > calibrate.log
"$WORK/build/bin/llama-imatrix" -m none --show-statistics --in-file demo.imatrix.gguf 2>&1 | grep -q "42 tensors"
for recipe in Q4_K_M Q4_0 Q5_0 Q2_K_S IQ4_XS IQ4_NL Q3_K_M Q6_K Q8_0; do
    "$LAPIDARY" run demo --recipe "$recipe" --imatrix demo.imatrix.gguf -o ours.gguf > run.log
    "$WORK/build/bin/llama-quantize" --imatrix demo.imatrix.gguf "$WORK/out/demo-f32.gguf" theirs.gguf "$recipe" 1 > quantize.log 2>&1
    "$WORK/venv/bin/python" - "$HERE" "$recipe" <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[1])
import gguf_check
ours, theirs = (gguf_check.read(f"{name}.gguf") for name in ("ours", "theirs"))
tensors = [{t["name"]: (t["type"], t["shape"], t["sha256"]) for t in d["tensors"]} for d in (ours, theirs)]
differing = [n for n in tensors[1] if tensors[0].get(n) != tensors[1][n]]
keys = [k for k in theirs["metadata"] if k.startswith("quantize.imatrix.") and ours["metadata"].get(k) != theirs["metadata"][k]]
print(f"{sys.argv[2]}: {len(tensors[1])} tensors, {len(differing)} differ; imatrix metadata {'differ: ' + str(keys) if keys else 'equal'}")
sys.exit(bool(differing or keys or len(tensors[0]) != len(tensors[1])))
PYTHON
    rm -f ours.gguf theirs.gguf
done
