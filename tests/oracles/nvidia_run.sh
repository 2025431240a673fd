#!/usr/bin/env bash
# All proofs and figures on a machine with an NVIDIA GPU, in one go, from the archive of nvidia_build.sh.
#
#   tar xf OUT.tar.xz && lapidary/nvidia_run.sh RESULTS
#
# Writes RESULTS/*.json and RESULTS/figures.md (date, hardware, figures). Needs the driver, Vulkan's loader (libvulkan1), and for
# the comparison a Python with torch; where one is missing, its part is left out and figures.md says so. DEVICE is a part of the
# GPU's name (default: what nvidia-smi says). PYTHON: python3. Where there is no GPU, DEVICE=llvmpipe (with Mesa's software
# driver) and MODEL_DEVICE=candle run everything but torch at software speed: a rehearsal, whose figures mean nothing.
set -uo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
RESULTS="${1:?a folder for the results}"
mkdir -p "$RESULTS"; RESULTS="$(cd "$RESULTS" && pwd)"
PYTHON="${PYTHON:-python3}"
L="${LAPIDARY:-$HERE/lapidary}"
WORK="$(mktemp -d)"; trap 'rm -rf "$WORK"' EXIT
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-$WORK}"
SMI="$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -1)"
DEVICE="${DEVICE:-${SMI%%,*}}"; MODEL_DEVICE="${MODEL_DEVICE:-$DEVICE}"
SIZE="${SIZE:-1b}"   # the synthetic model: 1b, or tiny for a rehearsal
NOTES="$RESULTS/figures.md"
# Libraries of CUDA that come with torch.
SITE="$($PYTHON -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null)"
for folder in "$SITE"/nvidia/*/lib; do [ -d "$folder" ] && LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"; done
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"

say() { echo "$*" | tee -a "$NOTES"; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.2f", to - from }'; }
part() { # part NAME COMMAND…: runs it, keeps its output, notes failure and time
    local name="$1" start took; shift
    start="$(now)"
    if "$@" >"$RESULTS/$name.json" 2>"$RESULTS/$name.log"; then
        took="$(since "$start")"
        say "- $name: done in $took s"
        printf '%s\t%s\n' "$name" "$took" >>"$TIMES"
    else
        say "- $name: FAILED after $(since "$start") s: $(tail -1 "$RESULTS/$name.log" | cut -c1-200)"; return 1
    fi
}
TIMES="$RESULTS/times.tsv"
: >"$NOTES"; : >"$TIMES"
say "# Figures on ${SMI:-a machine without nvidia-smi}"
say ""
say "$(date -u +%Y-%m-%d), $(nproc) cores of $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1). Device asked for: $DEVICE; models: $MODEL_DEVICE."
say ""
part devices "$L" devices demo --device "$DEVICE" --json

say ""; say "## Correctness: every kernel against the CPU"
if [ -x "$HERE/kernel_tests" ]; then
    LAPIDARY_DEVICE="$DEVICE" part kernels "$HERE/kernel_tests" --ignored --nocapture gpu
    say "  $(grep -c 'by the device' "$RESULTS/kernels.json") formats and choices; $(grep 'test result' "$RESULTS/kernels.json")"
fi
for format in q8_0 q4_0 q4_1 q5_0 q5_1 mxfp4; do
    printf 'version = 1\ntarget = "gguf"\n[default]\nformat = "%s"\n' "$format" >"$WORK/plan.toml"
    "$L" run demo --plan "$WORK/plan.toml" -o "$WORK/cpu.gguf" --device cpu >/dev/null 2>&1
    "$L" run demo --plan "$WORK/plan.toml" -o "$WORK/gpu.gguf" --device "$DEVICE" --json >"$RESULTS/pass_$format.json" 2>&1
    if cmp -s "$WORK/cpu.gguf" "$WORK/gpu.gguf"; then say "- pass to $format: same bytes"; else say "- pass to $format: OTHER BYTES"; fi
    rm -f "$WORK/cpu.gguf" "$WORK/gpu.gguf"
done

say ""; say "## Error scans, statistics and encoders"
part scan "$L" bench --kernels --filter scan --device "$DEVICE" --json

say ""; say "## Models: ours, and torch on the same weights"
"$PYTHON" "$HERE/nvidia_torch.py" make "$SIZE" "$WORK/model" >"$RESULTS/make.log" 2>&1 || "$L" demo -o "$WORK/model" >/dev/null 2>&1
for recipe in BF16 Q8_0 Q4_K_S; do
    "$L" run "$WORK/model" --recipe "$recipe" -o "$WORK/$recipe.gguf" --device cpu >/dev/null 2>&1
    part "bench_${recipe}_device" "$L" bench "$WORK/$recipe.gguf" --device "$MODEL_DEVICE" --json
    part "bench_${recipe}_cpu" "$L" bench "$WORK/$recipe.gguf" --device cpu --json
    # candle's products alone, in a plain loop; where no GPU is, on its CPU path.
    [ -x "$HERE/candle_rates" ] && part "candle_$recipe" "$HERE/candle_rates" "$WORK/$recipe.gguf"
done
part torch "$PYTHON" "$HERE/nvidia_torch.py" speed "$WORK/model"

"$L" demo -o "$WORK/demo" >/dev/null 2>&1
say ""; say "## Models on the device against the CPU: measured KLD map, gradients, masks and evaluation of the demo"
for format in bf16 f16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl mxfp4; do
    printf 'version = 1\ntarget = "gguf"\n[default]\nformat = "%s"\n' "$format" >"$WORK/plan.toml"
    "$L" run demo --plan "$WORK/plan.toml" -o "$WORK/own.gguf" --device cpu >/dev/null 2>&1
    for place in device cpu; do
        if [ "$place" = cpu ]; then on=cpu; else on="$MODEL_DEVICE"; fi
        part "format_${format}_$place" "$L" evaluate "$WORK/own.gguf" --text "$WORK/demo/evaluation.txt" --tokens 2048 --no-speed --device "$on" --json
    done
    rm -f "$WORK/own.gguf"
done
part kld_device "$L" sensitivity demo --metric kld --formats q8_0,q4_k,q4_0 -o "$RESULTS/kld_map_device.json" --device "$MODEL_DEVICE" --json
part kld_cpu "$L" sensitivity demo --metric kld --formats q8_0,q4_k,q4_0 -o "$RESULTS/kld_map_cpu.json" --device cpu --json
part mask_device "$L" mask demo --method wanda --pattern 2:4 --windows 8 -o "$WORK/masked_device" --device "$MODEL_DEVICE" --json
part mask_cpu "$L" mask demo --method wanda --pattern 2:4 --windows 8 -o "$WORK/masked_cpu" --device cpu --json
part fisher_cpu "$L" sensitivity demo --metric fisher --formats q4_k -o "$RESULTS/fisher_cpu.json" --device cpu --json
part fisher_device "$L" sensitivity demo --metric fisher --formats q4_k -o "$RESULTS/fisher_device.json" --device "$MODEL_DEVICE" --json
part evaluate_device "$L" evaluate demo --max-items 4 -o "$RESULTS/evaluation_device.json" --device "$MODEL_DEVICE" --json
part evaluate_cpu "$L" evaluate demo --max-items 4 -o "$RESULTS/evaluation_cpu.json" --device cpu --json
"$PYTHON" "$HERE/nvidia_torch.py" summary "$RESULTS" | tee -a "$NOTES"
