#!/usr/bin/env bash
# All proofs and figures on a machine with an NVIDIA GPU, from the archive of nvidia_build.sh.
#
#   tar xf OUT.tar.xz || python3 -m tarfile -e OUT.tar.xz
#   lapidary/nvidia_run.sh RESULTS
#
# Writes RESULTS/figures.md (date, hardware, figures) and RESULTS/results.tar.gz (every output), both anew after every step, so
# that a run that is cut short leaves what it has. PARTS says what to do, in one go or several: "kernels scan models maps" (the
# default), of which each takes some minutes. Outputs of earlier goes are kept in RAW (default: the folder `raw` beside this
# file); `nvidia_figures.py summary FOLDER` makes the tables again from archives unpacked over each other.
#
# Needs the driver and, for the comparison, a Python with torch, whose libraries of CUDA it uses. DEVICE is a part of the GPU's
# name (default: what nvidia-smi says), MODEL_DEVICE the same for models. Work whose device is not there is left out and said so,
# and figures that came from the CPU, wholly or after a failure, are marked as no figures. PYTHON: python3. Where there is no GPU,
# DEVICE=llvmpipe (with Mesa's software driver), MODEL_DEVICE=candle and SIZE=tiny rehearse it: those figures mean nothing.
set -uo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
RESULTS="${1:?a folder for the results}"
mkdir -p "$RESULTS"; RESULTS="$(cd "$RESULTS" && pwd)"
RAW="${RAW:-$HERE/raw}"
mkdir -p "$RAW"; RAW="$(cd "$RAW" && pwd)"
PARTS="${PARTS:-kernels scan models maps}"
PYTHON="${PYTHON:-python3}"
L="${LAPIDARY:-$HERE/lapidary}"
WORK="$(mktemp -d)"; trap 'rm -rf "$WORK"' EXIT
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-$WORK}"
SMI="$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -1)"
DEVICE="${DEVICE:-${SMI%%,*}}"; MODEL_DEVICE="${MODEL_DEVICE:-$DEVICE}"
SIZE="${SIZE:-1b}"   # the synthetic model: 1b, or tiny
[ -n "$DEVICE" ] || { echo "no GPU: nvidia-smi names none; DEVICE=llvmpipe MODEL_DEVICE=candle SIZE=tiny rehearses" >&2; exit 2; }

# Libraries of CUDA that come with torch.
SITE="$($PYTHON -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null)"
for folder in "$SITE"/nvidia/*/lib; do [ -d "$folder" ] && LD_LIBRARY_PATH="$folder:${LD_LIBRARY_PATH:-}"; done
# Vulkan's loader and NVIDIA's description of its driver, where the system has not put them in the usual places.
ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1' || LD_LIBRARY_PATH="$HERE/lib:${LD_LIBRARY_PATH:-}"
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
if [ -z "${VK_DRIVER_FILES:-}" ] && ! ls /usr/share/vulkan/icd.d/nvidia_icd*.json /etc/vulkan/icd.d/nvidia_icd*.json >/dev/null 2>&1; then
    FOUND="$(find /usr/local/nvidia /opt/nvidia -name 'nvidia_icd*.json' 2>/dev/null | head -1)"
    # The second name is for loaders before 1.3.207.
    [ -z "$FOUND" ] || export VK_DRIVER_FILES="$FOUND" VK_ICD_FILENAMES="$FOUND"
fi

figures() { "$PYTHON" "$HERE/nvidia_figures.py" "$@"; }
say() { echo "$*" | tee -a "$NOTES"; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.2f", to - from }'; }
publish() { # the notes of all parts so far and the tables; the archive of every output
    { cat "$RAW"/notes_*.md; figures summary "$RAW"; } >"$RESULTS/figures.md" 2>"$WORK/summary.log" ||
        { echo; echo "The tables could not be made: $(tail -1 "$WORK/summary.log")"; } >>"$RESULTS/figures.md"
    tar -C "$RAW" -czf "$WORK/results.tar.gz" . && mv "$WORK/results.tar.gz" "$RESULTS/results.tar.gz"
}
part() { # part NAME COMMAND…: runs it for LIMIT seconds at most, keeps its output, notes failure and time
    local name="$1" start took code why; shift
    rm -f "$RAW/$name.json" "$RAW/$name.log" "$RAW/$name.seconds" "$RAW/$name.failed"
    start="$(now)"
    timeout "${LIMIT:-150}" "$@" >"$RAW/$name.json" 2>"$RAW/$name.log"; code=$?
    took="$(since "$start")"
    if [ "$code" = 0 ]; then
        say "- $name: done in $took s"
        echo "$took" >"$RAW/$name.seconds"
    else
        # Half a document is none.
        mv "$RAW/$name.json" "$RAW/$name.failed"
        [ "$code" = 124 ] && why="it took too long" || why="$(tail -1 "$RAW/$name.log" | cut -c1-200)"
        say "- $name: FAILED after $took s: $why"
    fi
    publish
    return "$code"
}
begin() { NOTES="$RAW/notes_$1.md"; { echo; echo "## $2"; echo; } >"$NOTES"; echo; echo "## $2"; }
# kernels_there and models_there: whether the device that was asked for is the one that will do the work.
kernels_there() { figures runs "$RAW/devices.json" passes || { say "- left out: $DEVICE does not run kernels here (no Vulkan driver?), and the CPU against itself proves nothing"; return 1; }; }
models_there() { figures runs "$RAW/devices_models.json" models || { say "- left out: $MODEL_DEVICE does not run models here (no CUDA libraries?), and the CPU against itself proves nothing"; return 1; }; }
plan() { printf 'version = 1\ntarget = "%s"\n[default]\nformat = "%s"\nmethod = "%s"\n' "$1" "$2" "${3:-rtn}" >"$WORK/plan.toml"; }
same_bytes() { # same_bytes TARGET FORMAT METHOD: a pass on the device and one on the CPU
    local name="pass_$2_$3" end=""
    [ "$1" = gguf ] && end=.gguf
    plan "$1" "$2" "$3"
    rm -rf "$WORK"/by_cpu* "$WORK"/by_gpu*
    if ! timeout 150 "$L" run demo --plan "$WORK/plan.toml" -o "$WORK/by_cpu$end" --device cpu --json >"$RAW/${name}_cpu.json" 2>"$RAW/${name}_cpu.log"; then
        say "- pass to $2 ($1, $3): FAILED on the CPU: $(tail -1 "$RAW/${name}_cpu.log" | cut -c1-200)"
    elif ! timeout 150 "$L" run demo --plan "$WORK/plan.toml" -o "$WORK/by_gpu$end" --device "$DEVICE" --json >"$RAW/$name.json" 2>"$RAW/$name.log"; then
        say "- pass to $2 ($1, $3): FAILED on the device: $(tail -1 "$RAW/$name.log" | cut -c1-200)"
    elif ! by="$(figures encoded "$RAW/$name.json")"; then
        say "- pass to $2 ($1, $3): NO PROOF: $by"
    elif diff -rq "$WORK/by_cpu$end" "$WORK/by_gpu$end" >/dev/null; then
        say "- pass to $2 ($1, $3): same bytes, $by"
    else
        say "- pass to $2 ($1, $3): OTHER BYTES, $by"
    fi
}
model() { # the synthetic model, once; the demo where it cannot be made, by its name
    [ -s "$WORK/model/config.json" ] && return
    timeout 150 "$L" demo -o "$WORK/demo" >/dev/null 2>&1
    if timeout 150 "$PYTHON" "$HERE/nvidia_torch.py" make "$SIZE" "$WORK/model" >"$RAW/make.log" 2>&1; then
        # Words for it: speed does not mind which.
        cp "$WORK/demo/tokenizer.json" "$WORK/demo/tokenizer_config.json" "$WORK/model/"
        echo "synthetic Llama of shape $SIZE" >"$RAW/model.txt"
    else
        rm -rf "$WORK/model"; cp -r "$WORK/demo" "$WORK/model"
        echo "the bundled demo, since no other could be made: $(tail -1 "$RAW/make.log" | cut -c1-100)" >"$RAW/model.txt"
    fi
    say "- the model: $(cat "$RAW/model.txt")"
}

do_kernels() {
    begin 1_kernels "Correctness: every kernel against the CPU"
    kernels_there || return
    if [ -x "$HERE/kernel_tests" ]; then
        LAPIDARY_DEVICE="$DEVICE" LIMIT=300 part kernels "$HERE/kernel_tests" --ignored --nocapture gpu
        # The one of the two that is there.
        cat "$RAW"/kernels.json "$RAW"/kernels.failed 2>/dev/null >"$WORK/kernels.txt"
        say "  $(grep -c 'by the device' "$WORK/kernels.txt") formats and choices; $(grep 'test result' "$WORK/kernels.txt")"
        say "  most blocks with another choice than the CPU's: $(grep 'take another choice (' "$WORK/kernels.txt" | sort -t'(' -k2 -g -r | head -1)"
    fi
    for format in q8_0 q4_0 q4_1 q5_0 q5_1 mxfp4; do same_bytes gguf "$format" rtn; done
    same_bytes compressed-tensors int4_g128 rtn
    same_bytes compressed-tensors int8_channel rtn_percentile
    same_bytes compressed-tensors fp8_e4m3_channel rtn
    same_bytes bitsandbytes nf4_dq rtn
    part profile_device "$L" profile demo --device "$DEVICE" --json
    part profile_cpu "$L" profile demo --device cpu --json
}
do_scan() {
    begin 2_scan "Error scans, and what \`auto\` measures of scans, statistics and encoders"
    kernels_there || return
    part auto "$L" devices demo --device auto --json
    LIMIT=300 part scan "$L" bench --kernels --filter scan --device "$DEVICE" --json
}
do_models() {
    begin 3_models "Models: ours, candle's products alone, and torch on the same weights"
    models_there || return
    model
    # First, since it also says what the device's memory gives.
    LIMIT=200 part torch "$PYTHON" "$HERE/nvidia_torch.py" speed "$WORK/model"
    for recipe in BF16 Q8_0 Q4_K_S; do
        timeout 150 "$L" run "$WORK/model" --recipe "$recipe" -o "$WORK/$recipe.gguf" --device cpu >/dev/null 2>"$RAW/make_$recipe.log" ||
            { say "- $recipe: FAILED to be written: $(tail -1 "$RAW/make_$recipe.log" | cut -c1-200)"; continue; }
        part "bench_${recipe}_device" "$L" bench "$WORK/$recipe.gguf" --prefill-tokens 512 --decode-tokens 128 --device "$MODEL_DEVICE" --json
        part "bench_${recipe}_cpu" "$L" bench "$WORK/$recipe.gguf" --prefill-tokens 512 --decode-tokens 128 --device cpu --json
        [ -x "$HERE/candle_rates" ] && part "candle_$recipe" "$HERE/candle_rates" "$WORK/$recipe.gguf"
        rm -f "$WORK/$recipe.gguf"
    done
}
pair() { # pair NAME COMMAND…: on the device and on the CPU; {} in an argument is the place's name
    local name="$1" place on; shift
    for place in device cpu; do
        if [ "$place" = cpu ]; then on=cpu; else on="$MODEL_DEVICE"; fi
        part "${name}_$place" "${@//\{\}/$place}" --device "$on" --json
    done
}
do_maps() {
    begin 4_maps "Models on the device against the CPU: measured KLD map, gradients, masks and evaluation"
    models_there || return
    model
    pair kld_model "$L" sensitivity "$WORK/model" --metric kld --granularity layer --tokens 512 --formats q8_0,q4_k --calibration "$WORK/demo/calibration.txt"
    pair kld "$L" sensitivity demo --metric kld --formats q8_0,q4_k,q4_0
    pair fisher "$L" sensitivity demo --metric fisher --formats q4_k
    pair mask "$L" mask demo --method wanda --pattern 2:4 --windows 8 -o "$WORK/masked_{}"
    pair evaluate "$L" evaluate demo --max-items 4
    for format in bf16 f16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl mxfp4; do
        plan gguf "$format"
        timeout 150 "$L" run demo --plan "$WORK/plan.toml" -o "$WORK/own.gguf" --device cpu >/dev/null 2>"$RAW/make_$format.log" ||
            { say "- $format: FAILED to be written: $(tail -1 "$RAW/make_$format.log" | cut -c1-200)"; continue; }
        pair "format_$format" "$L" evaluate "$WORK/own.gguf" --text "$WORK/demo/evaluation.txt" --tokens 2048 --no-speed
        rm -f "$WORK/own.gguf"
    done
}

NOTES="$RAW/notes_0.md"; : >"$NOTES"
say "# Figures on ${SMI:-a machine without nvidia-smi}"
say ""
say "$(date -u +%Y-%m-%d), $(nproc) cores of $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1). Device asked for: $DEVICE; models: $MODEL_DEVICE."
say ""
part devices "$L" devices --device "$DEVICE" --json
part devices_models "$L" devices --device "$MODEL_DEVICE" --json
for each in $PARTS; do
    case "$each" in
        kernels | scan | models | maps) "do_$each" ;;
        *) echo "no part $each: kernels, scan, models or maps" >&2; exit 2 ;;
    esac
    publish
done
cat "$RESULTS/figures.md"
