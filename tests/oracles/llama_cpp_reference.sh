#!/usr/bin/env bash
# All of llama.cpp's numbers in tests/fixtures, from nothing but PyPI (about 20 minutes on two cores, 3 GB of disk).
#
#   tests/oracles/llama_cpp_reference.sh [WORK_FOLDER]      default: ${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}
#
# TORCH_PYTHON names a Python with torch, transformers, sentencepiece, protobuf, pyyaml, tqdm and requests (the converter needs them);
# without it such an environment is made in WORK_FOLDER/torch.
set -euo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
WORK="${1:-${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}}"
mkdir -p "$WORK"; WORK="$(cd "$WORK" && pwd)"
MODEL="$ROOT/assets/demo" OUT="$ROOT/tests/fixtures"
"$HERE/llama_cpp_build.sh" "$WORK"
if [ -z "${TORCH_PYTHON:-}" ]; then
    [ -x "$WORK/torch/bin/python" ] || python3 -m venv "$WORK/torch"
    "$WORK/torch/bin/pip" install -q torch==2.15.0 transformers==5.23.0 tokenizers safetensors numpy sentencepiece protobuf pyyaml tqdm requests
    TORCH_PYTHON="$WORK/torch/bin/python"
fi
python="$WORK/venv/bin/python"
"$TORCH_PYTHON" "$HERE/transformers_reference.py" "$MODEL" "$OUT"
"$python" "$HERE/ggml_blocks.py" "$WORK/build" "$OUT"
mkdir -p "$WORK/out"
for type in f32 bf16; do
    "$TORCH_PYTHON" "$HERE/llama_cpp_convert.py" "$WORK/src" "$MODEL" --outtype "$type" --outfile "$WORK/out/demo-$type.gguf"
done
for folder in "$OUT"/tiny_llama_*; do
    name="$(basename "$folder")"
    "$TORCH_PYTHON" "$HERE/llama_cpp_convert.py" "$WORK/src" "$folder" --outtype f32 --outfile "$WORK/out/tiny-${name#tiny_llama_}.gguf"
done
for step in metadata imatrix recipes tensor_types perplexity; do
    nice -n 19 "$python" "$HERE/llama_cpp_reference.py" "$step" "$WORK" "$MODEL" "$OUT"
done
"$TORCH_PYTHON" "$HERE/dequantized_reference.py" "$WORK" "$MODEL" "$OUT"
