#!/bin/sh
# Runs tests of the kernels at the AVX-512 levels on a machine that lacks them: builds them as one static
# binary, boots a Linux kernel with it in the Bochs emulator as an Ice Lake CPU, and shows what it says.
# Needs Debian's bochs, bochs-x, xvfb, isolinux, syslinux-common, xorriso, busybox-static, cpio, and a kernel image.
# Usage: avx512_bochs.sh VMLINUZ [WORK_DIR] [CPU_MODEL] [TEST_FILTER…]
#   CPU_MODEL: corei7_icelake_u (with VNNI, default) or corei7_skylake_x (without).
#   A kernel: apt-get download linux-image-amd64's dependency; dpkg -x it; boot/vmlinuz-*.
# An emulated CPU runs some hundred times slower than a real one: minutes to boot, minutes for the tests.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
kernel=$1
work=${2:-$(mktemp -d)}
model=${3:-corei7_icelake_u}
shift; [ $# -eq 0 ] || shift; [ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- kernels::packed kernels::dense
mkdir -p "$work"
target=x86_64-unknown-linux-gnu
binary=$(cd "$here" && RUSTFLAGS="-C target-feature=+crt-static" cargo test --package lapidary-kernels --lib --no-run --target $target --message-format=json |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

root=$work/root
rm -rf "$root" "$work/iso"
mkdir -p "$root/bin" "$root/proc" "$root/dev" "$root/sys" "$root/tmp" "$work/iso/isolinux"
cp /bin/busybox "$root/bin/busybox"
cp "$binary" "$root/test"
strip "$root/test" 2>/dev/null || true
cat > "$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
echo "flags: \$(/bin/busybox grep -m1 -o 'avx512[a-z0-9_]*' /proc/cpuinfo | /bin/busybox tr '\n' ' ')"
cd /tmp
/test --test-threads 1 $*
echo "TESTS ENDED WITH \$?"
/bin/busybox poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) > "$work/iso/initrd.gz"
cp "$kernel" "$work/iso/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/iso/isolinux/"
cat > "$work/iso/isolinux/isolinux.cfg" <<'CFG'
default test
prompt 0
label test
  kernel /vmlinuz
  append initrd=/initrd.gz console=ttyS0 nosmp mitigations=off nokaslr tsc=unstable lpj=2000000 panic=1
CFG
xorriso -as mkisofs -quiet -o "$work/test.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
  -no-emul-boot -boot-load-size 4 -boot-info-table "$work/iso"
cat > "$work/bochsrc" <<CONFIG
megs: 1024
cpu: model=$model, count=1, ips=200000000, reset_on_triple_fault=0
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$work/test.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial.txt
display_library: x
speaker: enabled=0
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
clock: sync=none
log: $work/bochs.log
panic: action=fatal
error: action=ignore
CONFIG
: > "$work/serial.txt"
echo c > "$work/commands"
# The other displays of Debian's Bochs want a terminal, or crash.
xvfb-run -a bochs -q -f "$work/bochsrc" -rc "$work/commands" < /dev/null > "$work/bochs.out" 2>&1 &
emulator=$!
trap 'kill $emulator 2>/dev/null || true' EXIT
while kill -0 $emulator 2>/dev/null && ! grep -q 'TESTS ENDED WITH\|Kernel panic' "$work/serial.txt"; do
  sleep 2
done
sed -n '/^flags/,$p' "$work/serial.txt"
grep -q 'TESTS ENDED WITH 0' "$work/serial.txt"
