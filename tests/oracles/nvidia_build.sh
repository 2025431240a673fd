#!/usr/bin/env bash
# Builds what nvidia_run.sh needs on a machine with an NVIDIA GPU that may have no Rust: one compressed archive.
#
#   CUDA_HOME=/path/to/cuda tests/oracles/nvidia_build.sh OUT.tar.xz
#
# CUDA_HOME is a CUDA 13.0 toolkit with nvcc, libcublas, libcurand and libcudart; NVIDIA's wheels on PyPI make one
# (nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime, nvidia-cuda-cccl, nvidia-cublas, nvidia-curand; all
# unpacked over each other). NVCC may name a wrapper that adds targets for the static kernels: compute capability 80 alone
# leaves quantized products without code on later GPUs. No GPU is needed to build.
#
# candle asks cudarc to link CUDA's libraries, so that the program would not start without them. cudarc also knows how to load
# them when they are first needed; `--cfg feature="dynamic-loading"` switches its sources over. It reaches the crates and not
# their build scripts, which refuse both, because --target is given. What is linked by name and never used, the linker drops.
set -euo pipefail
OUT="${1:?where to write the archive, as .tar.xz}"
OUT="$(cd "$(dirname "$OUT")" && pwd)/$(basename "$OUT")"
ROOT="$(cd "$(dirname "$0")/../.." && pwd)"
: "${CUDA_HOME:?the toolkit}"
TRIPLE=x86_64-unknown-linux-gnu
cd "$ROOT"
TARGET="${CARGO_TARGET_DIR:-$ROOT/target}"
STAGE="$(mktemp -d)"
trap 'rm -rf "$STAGE"' EXIT

# The driver's library is on machines with a driver only; an empty one of its name satisfies the linker.
mkdir -p "$STAGE/stubs"
echo | cc -shared -fPIC -Wl,-soname,libcuda.so.1 -xc - -o "$STAGE/stubs/libcuda.so"

export PATH="$CUDA_HOME/bin:$PATH" NVCC="${NVCC:-$CUDA_HOME/bin/nvcc}" CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
export CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-1}"
export RUSTFLAGS="--cfg feature=\"dynamic-loading\" -L native=$CUDA_HOME/lib -L native=$STAGE/stubs"
cargo build --release --features cuda --target "$TRIPLE" --bin lapidary
PROGRAM="$TARGET/$TRIPLE/release/lapidary"

# It must start where there is no CUDA, and say that models run on the CPU.
if readelf -d "$PROGRAM" | grep -E 'NEEDED.*(libcuda|libcublas|libcurand|libcudart|libnvrtc)'; then
    echo "the program needs CUDA's libraries to start"; exit 1
fi
LD_LIBRARY_PATH= "$PROGRAM" devices --device auto

# The kernels' own tests, which need a driver and no Rust.
unset RUSTFLAGS
TESTS="$(cargo test --release -p lapidary-kernels --lib --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*lapidary_kernels[^"]*\)".*/\1/p' | tail -1)"
mkdir -p "$STAGE/lapidary"
cp "$PROGRAM" "$STAGE/lapidary/lapidary"
cp "$TESTS" "$STAGE/lapidary/kernel_tests"
cp "$ROOT/tests/oracles/nvidia_run.sh" "$ROOT/tests/oracles/nvidia_torch.py" "$STAGE/lapidary/"
strip "$STAGE/lapidary/kernel_tests"
tar -C "$STAGE" -c lapidary | xz -2 -T0 >"$OUT"
ls -l "$OUT"
