#!/bin/sh
# Makes what a virtual machine boots from: a kernel of Debian, and a root file system in memory with the
# given everhook as /init, the libraries it needs, and busybox for everything else.
#   vm_image.sh EVERHOOK KEPT IMAGE FILES
# KEPT is a folder where the kernel is kept for the next time; what is in FILES comes into the root.
set -eu
everhook=$1 kept=$2 image=$3 files=$4

mkdir -p "$kept"
if [ ! -e "$kept/vmlinuz" ]; then
    work=$(mktemp -d "$kept/kernel.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    # The package of the newest kernel is what the package without a version depends on.
    newest() { apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/ *Depends: *//p' | head -n 1; }
    [ -n "$(newest)" ] || apt-get update -q
    apt-get download -q "$(newest)"
    dpkg-deb --fsys-tarfile ./*.deb | tar x ./boot
    mv boot/vmlinuz-* "$kept/vmlinuz"
    cd /
fi

root=$(mktemp -d "$image.root.XXXXXX")
trap 'rm -rf "$root" "${work:-$root}"' EXIT
chmod 755 "$root"
mkdir "$root/bin" "$root/tmp" "$root/var"
cp "$everhook" "$root/init"
strip "$root/init"
ln -s ../init "$root/bin/everhook"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do
    [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done
ldd "$everhook" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cp -R "$files/." "$root/"
cd "$root"
find . | busybox cpio -o -H newc 2> /dev/null | gzip -1 > "$image"
