#!/usr/bin/env bash
# Builds what nvidia_run.sh needs on a machine with an NVIDIA GPU that may have no Rust: one compressed archive.
#
#   tests/oracles/nvidia_build.sh OUT.tar.xz [TOOLKIT]
#
# The program comes from cuda_build.sh, which see for the toolkit and its variables (CUDA_COMPUTE_CAP=90 is a smaller archive, for
# Hopper alone). No GPU is needed to build. Two programs carry the same machine code for CUDA: a window that spans both keeps it
# once. Vulkan's loader travels along, from this system's libvulkan1, for machines that have a driver and no loader.
set -euo pipefail
OUT="${1:?where to write the archive, as .tar.xz}"
OUT="$(cd "$(dirname "$OUT")" && pwd)/$(basename "$OUT")"
ROOT="$(cd "$(dirname "$0")/../.." && pwd)"
cd "$ROOT"
STAGE="$(mktemp -d)"
trap 'rm -rf "$STAGE"' EXIT

PROGRAM="$(tests/oracles/cuda_build.sh ${2:+"$2"})"
# The kernels' own tests, which need a driver and no Rust. Those of the engine read the source tree: nvidia_run.sh has the
# program itself do what they do.
TESTS="$(cargo test --release -p lapidary-kernels --lib --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*lapidary_kernels[^"]*\)".*/\1/p' | tail -1)"
mkdir -p "$STAGE/lapidary/lib"
cp "$PROGRAM" "$STAGE/lapidary/lapidary"
cp "$(dirname "$PROGRAM")/examples/candle_rates" "$STAGE/lapidary/candle_rates"
cp "$TESTS" "$STAGE/lapidary/kernel_tests"
cp tests/oracles/nvidia_run.sh tests/oracles/nvidia_torch.py tests/oracles/nvidia_figures.py "$STAGE/lapidary/"
strip "$STAGE/lapidary/kernel_tests" "$STAGE/lapidary/candle_rates"
LOADER="$(ldconfig -p | sed -n 's/.*libvulkan\.so\.1 (.*x86-64.* => //p' | head -1)"
if [ -n "$LOADER" ]; then
    cp -L "$LOADER" "$STAGE/lapidary/lib/libvulkan.so.1"
else
    echo "no libvulkan.so.1 here (Debian's libvulkan1): the machine has to have one" >&2
fi
# The two that share code lie beside each other; one thread, so that the window is not cut.
tar -C "$STAGE" -c lapidary/lapidary lapidary/candle_rates lapidary/kernel_tests lapidary/lib lapidary/nvidia_run.sh \
    lapidary/nvidia_torch.py lapidary/nvidia_figures.py | xz --lzma2=preset=6,dict=256MiB -T1 >"$OUT"
ls -l "$OUT"
