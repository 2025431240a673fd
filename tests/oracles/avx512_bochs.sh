#!/bin/sh
# Runs tests of the kernels at the AVX-512 levels on a machine that lacks them: builds them as one static
# binary and runs it in the Bochs emulator as an Ice Lake CPU, on a bare loader of ours (avx512_bochs/)
# that answers the few Linux system calls which such a binary makes. No operating system is booted.
# Needs gcc and Debian's bochs, bochs-x and xvfb.
# Usage: avx512_bochs.sh [CPU_MODEL] [TEST_FILTER…]
#   CPU_MODEL: corei7_icelake_u (with VNNI, default) or corei7_skylake_x (without).
#   WORK, in the environment: a folder to work in, kept; TEST_BINARY: a static binary made before.
# An emulated CPU runs some hundred times slower than a real one: what came of it is in avx512_bochs.txt.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
model=${1:-corei7_icelake_u}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- kernels::packed kernels::dense kernels::activations
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"

binary=${TEST_BINARY:-}
if [ -z "$binary" ]; then
  binary=$(cd "$here/../.." &&
    RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" cargo test --package lapidary-kernels --lib \
      --no-run --target x86_64-unknown-linux-gnu --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
fi
strip -o "$work/program" "$binary"

cd "$work"
{
  echo '.section .rodata; .global command_line; command_line:'
  for word in test --test-threads 1 --nocapture "$@"; do printf '.asciz "%s"\n' "$word"; done
  echo '.byte 0'
} > command_line.S
gcc -c -o rom.o "$here/avx512_bochs/rom.S"
ld -Ttext=0 -e 0 --oformat=binary -o rom.bin rom.o
gcc -O1 -Wall -Wextra -ffreestanding -fno-pic -no-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector \
  -fcf-protection=none -nostdlib -static -Wl,--build-id=none -Wl,--oformat=binary -Wl,-T,"$here/avx512_bochs/loader.ld" \
  -o loader.bin "$here/avx512_bochs/loader.c" command_line.S
cat > bochsrc <<CONFIG
memory: guest=1024, host=1024
cpu: model=$model, count=1, ips=200000000, reset_on_triple_fault=0
romimage: file=$work/rom.bin
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
optramimage1: file=$work/loader.bin, address=0x00100000
optramimage2: file=$work/program, address=0x30000000
port_e9_hack: enabled=1
display_library: x
speaker: enabled=0
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
clock: sync=none
log: $work/bochs.log
panic: action=fatal
error: action=ignore
CONFIG
echo c > commands
# The other displays of Debian's Bochs want a terminal, or crash.
xvfb-run -a bochs -q -f bochsrc -rc commands < /dev/null 2> bochs.err | tee bochs.out |
  sed -un '/^running [0-9]* test/,/TESTS ENDED/ { p; b }; /^loader:/p; /^exception/p'
grep -q 'TESTS ENDED WITH 0' bochs.out
