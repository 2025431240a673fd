#!/usr/bin/env bash
# Does llama.cpp load a GGUF that Lapidary wrote, and what perplexity does it get?
#
#   tests/oracles/llama_cpp_check.sh FILE.gguf [TEXT] [WORK_FOLDER]
#
# TEXT: default assets/demo/evaluation.txt. WORK_FOLDER: as in llama_cpp_build.sh, which must have run.
# Prints the perplexity at context 256 (the convention is in tests/fixtures/llama_cpp_perplexity.json) and a few generated words' speed.
# Set BASE to a file to compare distributions: the first run (where BASE does not exist) writes it, later runs print KL divergence against it.
# Exit status is llama.cpp's.
set -euo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
FILE="$1" TEXT="${2:-$HERE/../../assets/demo/evaluation.txt}" WORK="${3:-${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}}"
export LD_LIBRARY_PATH="$WORK/build/bin"
more=()
if [ -n "${BASE:-}" ]; then
    more=(--kl-divergence-base "$BASE")
    [ ! -s "$BASE" ] || more+=(--kl-divergence)
fi
log="$(mktemp)"; trap 'rm -f "$log"' EXIT
nice -n 19 "$WORK/build/bin/llama-perplexity" -m "$FILE" -f "$TEXT" -c 256 -t "${THREADS:-2}" "${more[@]}" >"$log" 2>&1 || { tail -20 "$log"; exit 1; }
grep -E "Final estimate|Mean PPL\(Q\)|Mean +KLD|Same top p|[Ww]arn| W |error|missing" "$log" || { tail -20 "$log"; exit 1; }
if [ "${SPEED:-}" ]; then
    nice -n 19 "$WORK/build/bin/llama-bench" -m "$FILE" -p 128 -n 32 -t "${THREADS:-2}" -r 3
fi
