#!/usr/bin/env bash
# Builds what nvidia_run.sh needs on a machine with an NVIDIA GPU that may have no Rust: one compressed archive.
#
#   tests/oracles/nvidia_build.sh OUT.tar.xz [TOOLKIT]
#
# The program comes from cuda_build.sh, which see for the toolkit and its variables. No GPU is needed to build.
set -euo pipefail
OUT="${1:?where to write the archive, as .tar.xz}"
OUT="$(cd "$(dirname "$OUT")" && pwd)/$(basename "$OUT")"
ROOT="$(cd "$(dirname "$0")/../.." && pwd)"
cd "$ROOT"
STAGE="$(mktemp -d)"
trap 'rm -rf "$STAGE"' EXIT

PROGRAM="$(tests/oracles/cuda_build.sh ${2:+"$2"})"
# The kernels' own tests, which need a driver and no Rust.
TESTS="$(cargo test --release -p lapidary-kernels --lib --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*lapidary_kernels[^"]*\)".*/\1/p' | tail -1)"
mkdir -p "$STAGE/lapidary"
cp "$PROGRAM" "$STAGE/lapidary/lapidary"
cp "$(dirname "$PROGRAM")/examples/candle_rates" "$STAGE/lapidary/candle_rates"
cp "$TESTS" "$STAGE/lapidary/kernel_tests"
cp tests/oracles/nvidia_run.sh tests/oracles/nvidia_torch.py "$STAGE/lapidary/"
strip "$STAGE/lapidary/kernel_tests" "$STAGE/lapidary/candle_rates"
tar -C "$STAGE" -c lapidary | xz -2 -T0 >"$OUT"
ls -l "$OUT"
