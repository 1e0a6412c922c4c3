#!/bin/sh
# Builds the initramfs of the debuggers' guest.  Env: BUSYBOX (static), KMOD (kernel modules dir, .../lib/modules/VERSION), OUT
set -e
: "${BUSYBOX:?set BUSYBOX}" "${KMOD:?set KMOD to lib/modules/VERSION}" "${OUT:=initramfs.gz}"
here=$(cd "$(dirname "$0")" && pwd); t=$(mktemp -d); mkdir -p "$t/bin" "$t/lib"
cp "$BUSYBOX" "$t/bin/busybox"; ln -s busybox "$t/bin/sh"
# The guest's insmod does not decompress.
"$BUSYBOX" xzcat "$KMOD/kernel/drivers/firmware/qemu_fw_cfg.ko.xz" > "$t/lib/qemu_fw_cfg.ko"
cp "$here/init" "$t/init"; chmod 755 "$t/init"
(cd "$t" && find . | cpio -o -H newc --quiet | gzip -1) > "$OUT"; rm -rf "$t"
