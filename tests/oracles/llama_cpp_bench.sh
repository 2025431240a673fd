#!/usr/bin/env bash
# Our speed beside llama.cpp's, in one run and in turns (ours, theirs, ours, theirs …).
#
#   tests/oracles/llama_cpp_bench.sh kernels [FORMAT…]       encoders and matrix products; default: the formats of the issue
#   tests/oracles/llama_cpp_bench.sh models FILE.gguf…       prefill of 512 and decode of 128 tokens, as llama-bench
#   tests/oracles/llama_cpp_bench.sh texts TEXT FILE.gguf…   perplexity of a text in llama.cpp's windows (CONTEXT, default 512;
#                                                            CHUNKS of them, default 8), beside llama-perplexity
#
# WORK (default ${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}) is llama_cpp_build.sh's folder, which must have run. The peer
# here is another build of the same sources in WORK/build-fast: -O3, for this machine, with the repacked layouts and
# llamafile's kernels, which is the fastest that llama.cpp has; PEER_LIB names a folder with such libraries instead.
# LAPIDARY names our program (default: target/release/lapidary). THREADS: "1 2" (default: 1 and all). ROUNDS: 3. SECONDS_EACH: 0.5.
# Prints ours : theirs by the best time of all rounds; above 1 we are faster. Let the machine be quiet.
set -euo pipefail
HERE="$(cd "$(dirname "$0")" && pwd)"
ROOT="$(cd "$HERE/../.." && pwd)"
WORK="${WORK:-${LAPIDARY_ORACLE:-$HOME/.cache/lapidary-oracle}}"
export LAPIDARY="${LAPIDARY:-$ROOT/target/release/lapidary}" THREADS="${THREADS:-1 $(nproc)}" ROUNDS="${ROUNDS:-3}"
export SECONDS_EACH="${SECONDS_EACH:-0.5}"
PATH="$WORK/venv/bin:$PATH"
if [ -z "${PEER_LIB:-}" ]; then
    PEER_LIB="$WORK/build-fast/bin"
    if [ ! -e "$PEER_LIB/libllama.so" ]; then
        cmake -S "$WORK/src" -B "$WORK/build-fast" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
            -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=ON -DGGML_CPU_REPACK=ON -DGGML_BLAS=OFF \
            -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_OPENSSL=OFF
        cmake --build "$WORK/build-fast" --target ggml llama
    fi
fi
# llama-bench and llama-perplexity themselves come from the other build: only its libraries decide its speed.
export LD_LIBRARY_PATH="$PEER_LIB:$WORK/build/bin" LLAMA_BENCH="$WORK/build/bin/llama-bench"
export LLAMA_PERPLEXITY="$WORK/build/bin/llama-perplexity" CONTEXT="${CONTEXT:-512}" CHUNKS="${CHUNKS:-8}"
export GGML_BENCH="${TMPDIR:-/tmp}/lapidary_ggml_bench.$$"
trap 'rm -f "$GGML_BENCH"' EXIT
g++ -O2 -std=c++17 -I"$WORK/src/ggml/include" "$HERE/ggml_bench.cpp" -o "$GGML_BENCH" \
    -L"$PEER_LIB" -lggml -lggml-cpu -lggml-base -pthread
"${PYTHON:-python3}" "$HERE/llama_cpp_bench.py" "$@"
