#!/usr/bin/env bash
# Builds llama.cpp from the sdist of the PyPI package `llama-cpp-python` (the sources are vendored in it).
#
#   tests/oracles/llama_cpp_build.sh [WORK_FOLDER]       default: ${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}
#
# Leaves in WORK_FOLDER: venv/ (numpy, gguf, cmake, ninja), src/ (llama.cpp), build/ (libraries and tools).
#
# One build serves both purposes:
#   - everything is compiled with -O2 -ffp-contract=off for baseline x86-64, so that the quantizers in ggml-base give the
#     bytes that their C source says (no fused multiply-add changes a rounding);
#   - only the matrix kernels (target ggml-cpu) are compiled for this machine (GGML_NATIVE).
# The repacked layouts and llamafile's kernels are off: only the plain kernels compute.
set -euo pipefail
VERSION=0.3.36
WORK="${1:-${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}}"
JOBS="${JOBS:-1}"
mkdir -p "$WORK"; cd "$WORK"
if [ ! -x venv/bin/cmake ]; then
    python3 -m venv venv
    venv/bin/pip install -q scikit-build-core cmake ninja numpy gguf==0.19.0
fi
if [ ! -d src ]; then
    venv/bin/pip download -q --no-binary :all: --no-deps --no-build-isolation "llama-cpp-python==$VERSION"
    tar xmf "llama_cpp_python-$VERSION.tar.gz"
    # (tar -m: a source dated after this machine's clock would make ninja configure for ever)
    mv "llama_cpp_python-$VERSION/vendor/llama.cpp" src
    rm -f src/.git    # a submodule's pointer to a repository that is not here
fi
PATH="$WORK/venv/bin:$PATH"
nice -n 19 cmake -S src -B build -G Ninja \
    -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_FLAGS_RELEASE="-O2 -DNDEBUG -ffp-contract=off" -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG -ffp-contract=off" \
    -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF -DGGML_CPU_REPACK=OFF -DGGML_BLAS=OFF \
    -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF
for target in ggml-base ggml-cpu llama llama-quantize llama-imatrix llama-perplexity llama-bench llama-tokenize; do
    nice -n 19 cmake --build build --target "$target" -j "$JOBS"
done
