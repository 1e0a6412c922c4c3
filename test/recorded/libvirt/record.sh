#!/bin/sh
# Saves a small domain with a real libvirt in every format, and writes the images, packed, and their list into a folder:
#   record.sh FOLDER
# Runs as root where nothing else uses libvirt, such as a chroot with /proc, /dev and /sys: Debian's libvirt-daemon-driver-qemu, libvirt-clients,
# libvirt-daemon-config-nwfilter, qemu-system-x86, zstd. Appends to /etc/libvirt/qemu.conf, starts a libvirtd and ends it.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d)

cat >> /etc/libvirt/qemu.conf << 'CONF'
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
CONF

# Firmware that holds next to nothing, and bytes for the middle of memory. Libvirt keeps their paths in the image.
{ printf 'ramferry'; head -c 65528 /dev/zero; } > /tmp/bios
awk 'BEGIN { srand(5); for (i = 0; i < 700; i++) printf "%c", 33 + int(rand() * 90) }' > /tmp/pattern
cat > "$work/domain.xml" << 'XML'
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>small</name>
  <uuid>0d7b5a0e-6a30-4b1e-9d55-52414d464552</uuid>
  <memory unit='MiB'>1</memory>
  <memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><loader readonly='yes' type='rom'>/tmp/bios</loader></os>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-device'/><qemu:arg value='loader,file=/tmp/pattern,addr=0x30000,force-raw=on'/>
  </qemu:commandline>
</domain>
XML

libvirtd > "$work/log" 2>&1 &
daemon=$!
trap 'kill "$daemon"; rm -rf "$work"' EXIT
until virsh version > "$work/version" 2>/dev/null; do sleep 0.5; done
qemu=$(sed -n 's/^Running hypervisor: QEMU //p' "$work/version")

save() { # NAME FORMAT [OPTION…]
  name=$1 format=$2
  shift 2
  virsh create --paused "$work/domain.xml" > "$work/log"
  # The domain is paused: what is in the file behind its memory is what is saved.
  ram=$(find /var/lib/libvirt/qemu/ram -name pc.ram)
  sha=$(sha256sum "$ram" | cut -d' ' -f1)
  machine=$(virsh dumpxml small | sed -n "s/.*machine='\([^']*\)'.*/\1/p")
  virsh save small "$work/$name.save" --image-format "$format" --paused "$@" > "$work/log"
  zstd -q -19 -f "$work/$name.save" -o "$folder/$name.save.zst"
  kind=stream
  [ "$format" = sparse ] && kind=mapped-ram
  printf '%s  {\n    "file": "libvirt/%s.save.zst",\n    "libvirt": "%s",\n    "format": "%s",\n    "qemu": "%s",\n    "machine": "%s",\n' \
    "$comma" "$name" "$format" "$kind" "$qemu" "$machine" >> "$work/list"
  printf '    "pageSize": 4096,\n    "block": "pc.ram",\n    "bytes": 1048576,\n    "sha256": "%s"\n  }' "$sha" >> "$work/list"
  comma=',
'
}
comma=
save raw raw
save gzip gzip
save zstd zstd
save sparse sparse
save parallel sparse --parallel-channels 3
{ echo '['; cat "$work/list"; printf '\n]\n'; } > "$folder/recorded-files.json"
