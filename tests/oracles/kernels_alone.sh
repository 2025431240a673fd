#!/bin/sh
# Writes a crate to DIR that holds the kernels and formats of this repository alone, by path, so that their
# tests can be built for another target in a minute, without the window and its dependencies.
# Usage: kernels_alone.sh DIR
set -eu
repo=$(cd "$(dirname "$0")/../.." && pwd)
dir=$1
mkdir -p "$dir/src"
version() { # The version that the repository asks for.
  sed -n "s/^$1 = \"\([0-9.]*\)\".*/\1/p; s/^$1 = {.*version = \"\([0-9.]*\)\".*/\1/p" "$repo/Cargo.toml" | head -n 1
}
{
  printf '[package]\nname = "lapidary"\nversion = "0.1.0"\nedition = "2024"\n\n[workspace]\n\n[dependencies]\n'
  for name in gemm half rayon bytemuck; do
    found=$(version "$name")
    [ -z "$found" ] || printf '%s = "%s"\n' "$name" "$found"
  done
  printf 'serde = { version = "%s", features = ["derive", "rc"] }\n' "$(version serde)"
  printf '\n[dev-dependencies]\nproptest = "1"\nsafetensors = "%s"\nserde_json = "%s"\n' "$(version safetensors)" "$(version serde_json)"
  printf '\n[profile.test]\nopt-level = 2\ndebug = false\n'
} > "$dir/Cargo.toml"
cat > "$dir/src/lib.rs" <<LIB
//! Kernels and formats without the rest.
pub mod engine {
    #[path = "$repo/src/engine/format/mod.rs"]
    pub mod format;
    #[path = "$repo/src/engine/kernels/mod.rs"]
    pub mod kernels;
}
LIB
