#!/bin/sh
# Runs the tests of the packed and dense products for AArch64 under qemu-user, at each NEON level.
# Needs: rustup target aarch64-unknown-linux-gnu; Debian's qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross.
# Usage: neon_qemu.sh [TEST_FILTER…]
set -eu
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- kernels::packed kernels::dense kernels::activations
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# `max` has dot products, so that both levels run.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"
cargo test --package lapidary-kernels --lib --target aarch64-unknown-linux-gnu -- "$@"
