#!/usr/bin/env bash
# Builds the program with candle's CUDA device, where there is no GPU and no CUDA, so that it starts where there is none either.
#
#   tests/oracles/cuda_build.sh [TOOLKIT]        prints the program's path; with ONLY_TOOLKIT=1 makes the toolkit and stops
#
# CUDA_HOME, if set, is a CUDA 13.0 toolkit with nvcc; else one is made in TOOLKIT (default: target/cuda-toolkit) from NVIDIA's
# wheels on PyPI, about 100 MB, with Python's pip. CUDA_COMPUTE_CAP is the GPU to build for. The default, 80, makes a program for
# 8.0, 9.0 and later ones (a quarter of an hour on one core): general kernels are carried as code that the driver translates,
# products of quantized weights as machine code, which has to be made for each GPU. 90 builds for Hopper alone, in half the time.
#
# candle asks cudarc to link CUDA's libraries, so that the program would not start without them. cudarc also knows how to load
# them when they are first needed; `--cfg feature="dynamic-loading"` switches its sources over. It reaches the crates and not
# their build scripts, which refuse both, because --target is given. What is linked by name and never used, the linker drops:
# empty libraries of those names do.
set -euo pipefail
ROOT="$(cd "$(dirname "$0")/../.." && pwd)"
TRIPLE="${TRIPLE:-x86_64-unknown-linux-gnu}"
TARGET="${CARGO_TARGET_DIR:-$ROOT/target}"

make_toolkit() { # make_toolkit FOLDER: FOLDER/cuda is the toolkit
    local wheels="$1/wheels" site="$1/site" name
    mkdir -p "$wheels"
    python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 -d "$wheels" \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    rm -rf "$site" "$1/cuda"
    for name in "$wheels"/*.whl; do python3 -m zipfile -e "$name" "$site"; done
    mv "$site/nvidia/cu13" "$1/cuda"
    rm -rf "$site" "$wheels"
    chmod +x "$1"/cuda/bin/* "$1"/cuda/nvvm/bin/*
    ln -sfn lib "$1/cuda/lib64"
    # The runtime is linked in; it loads the driver by itself.
    printf 'INPUT(libcudart_static.a)\nINPUT(AS_NEEDED(-ldl -lrt -lpthread))\n' >"$1/cuda/lib/libcudart.so"
}

FOLDER="${1:-$TARGET/cuda-toolkit}"
if [ -z "${CUDA_HOME:-}" ]; then
    [ -x "$FOLDER/cuda/bin/nvcc" ] || make_toolkit "$FOLDER" >&2
    CUDA_HOME="$(cd "$FOLDER" && pwd)/cuda"
fi
export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
nvcc --version | tail -2 >&2
[ -z "${ONLY_TOOLKIT:-}" ] || { echo "$CUDA_HOME"; exit 0; }

STAGE="$TARGET/cuda-stage"
mkdir -p "$STAGE"
for name in cuda cublas cublasLt curand nvrtc; do
    # Real ones are found first where the toolkit has them; the driver's is on machines with a driver only.
    [ -e "$CUDA_HOME/lib64/lib$name.so" ] || echo | cc -shared -fPIC -Wl,-soname,"lib$name.so" -xc - -o "$STAGE/lib$name.so"
done
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}" CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-1}"
if [ "$CUDA_COMPUTE_CAP" = 80 ] && [ -z "${NVCC:-}" ]; then
    # Adds machine code for later GPUs to the library of quantized products; what the driver translates stays as it is.
    cat >"$STAGE/nvcc-fat" <<'W'
#!/usr/bin/env bash
for argument in "$@"; do [ "$argument" = --ptx ] && exec "$CUDA_HOME/bin/nvcc" "$@"; done
exec "$CUDA_HOME/bin/nvcc" "$@" -gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_90,code=compute_90
W
    chmod +x "$STAGE/nvcc-fat"
    NVCC="$STAGE/nvcc-fat"
fi
export NVCC="${NVCC:-$CUDA_HOME/bin/nvcc}"
export RUSTFLAGS="--cfg feature=\"dynamic-loading\" -L native=$CUDA_HOME/lib -L native=$CUDA_HOME/lib64 -L native=$STAGE"
cd "$ROOT"
cargo build --release --features cuda --target "$TRIPLE" --bin lapidary --example candle_rates >&2
PROGRAM="$TARGET/$TRIPLE/release/lapidary"

# It must start where there is no CUDA, and say that models run on the CPU.
if readelf -d "$PROGRAM" | grep -E 'NEEDED.*(libcuda|libcublas|libcurand|libcudart|libnvrtc)' >&2; then
    echo "the program needs CUDA's libraries to start" >&2; exit 1
fi
if [ ! -e /proc/driver/nvidia ]; then
    LD_LIBRARY_PATH= "$PROGRAM" devices --device auto --json |
        python3 -c 'import json, sys; cpu = json.load(sys.stdin)["devices"][-1]; assert cpu["kind"] == "cpu" and "models" in cpu["will_run"], cpu'
fi
echo "$PROGRAM"
