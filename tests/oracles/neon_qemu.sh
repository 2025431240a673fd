#!/bin/sh
# Runs the tests of formats and kernels for AArch64 under qemu-user: ggml's bytes and values, encoders, scans,
# statistics, and the products at each NEON level. Those of the GPU stay out, as does its feature.
# Needs: rustup target aarch64-unknown-linux-gnu; Debian's qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross.
# Usage: neon_qemu.sh [TEST_FILTER…]
# What came of it is kept in neon_qemu.txt, made by `neon_qemu.sh > neon_qemu.txt`.
set -eu
cd "$(dirname "$0")/../.."
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# `max` has dot products, so that both levels run.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"
echo "What neon_qemu.sh said, with $(qemu-aarch64 --version | head -n 1), CPU model max."
exec cargo test --package lapidary-kernels --no-default-features --lib --target aarch64-unknown-linux-gnu -- "$@"
