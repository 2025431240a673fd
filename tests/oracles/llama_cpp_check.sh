#!/usr/bin/env bash
# Does llama.cpp load a GGUF that Lapidary wrote, and what perplexity does it get?
#
#   tests/oracles/llama_cpp_check.sh FILE.gguf [TEXT] [WORK_FOLDER]
#
# TEXT: default assets/demo/evaluation.txt. WORK_FOLDER: as in llama_cpp_build.sh, which must have run.
# Prints the perplexity at context 256 (the convention is in tests/fixtures/llama_cpp_perplexity.json).
# Set SPEED=1 to run llama-bench too. Set BASE to a file to compare distributions: the first run (where BASE does not exist) writes it, later runs print KL divergence against it.
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
for attempt in 1 2 3; do # on a busy machine the tool's asynchronous log now and then loses its last lines
    status=0
    nice -n 19 "$WORK/build/bin/llama-perplexity" -m "$FILE" -f "$TEXT" -c 256 -t "${THREADS:-2}" "${more[@]}" >"$log" 2>&1 || status=$?
    if [ "$status" != 0 ]; then tail -20 "$log"; echo "llama-perplexity: status $status, $FILE"; exit "$status"; fi
    if grep -qE "Final estimate|Same top p" "$log"; then break; fi
    if [ "$attempt" = 3 ]; then tail -20 "$log"; echo "llama-perplexity printed no result"; exit 1; fi
done
grep -E "Final estimate|Mean PPL\(Q\)|Mean +KLD|Same top p|[Ww]arn| W |error|missing" "$log"
if [ "${SPEED:-}" ]; then
    nice -n 19 "$WORK/build/bin/llama-bench" -m "$FILE" -p 128 -n 32 -t "${THREADS:-2}" -r 3
fi
