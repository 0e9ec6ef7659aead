#!/bin/sh
# Makes what a virtual machine boots from: a kernel of Debian, and a root file system in memory with the
# given everhook, the libraries it needs, and busybox for everything else.
#   vm_image.sh EVERHOOK KEPT IMAGE FILES INIT
# KEPT is a folder where the kernel is kept for the next time; what is in FILES comes into the root. INIT,
# what becomes /init, is `everhook` or `systemd`: the one that is installed here, with the few units that a
# machine needs to get up and down.
set -eu
everhook=$1 kept=$2 image=$3 files=$4 init=$5

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
with_libraries_of() {
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
}
mkdir -p "$root/bin" "$root/tmp" "$root/var" "$root/usr/local/bin"
cp "$everhook" "$root/usr/local/bin/everhook"
strip "$root/usr/local/bin/everhook"
ln -s ../usr/local/bin/everhook "$root/bin/everhook"
with_libraries_of "$everhook"
if [ "$init" = systemd ]; then
    own=/lib/systemd
    for program in $own/systemd $own/systemd-shutdown $own/systemd-executor /bin/systemctl; do
        # The one before systemd 254 executes what it starts itself.
        [ -e "$program" ] || continue
        mkdir -p "$root$(dirname "$program")"
        cp -L "$program" "$root$program"
        with_libraries_of "$program"
    done
    mkdir -p "$root$own/system"
    for name in sysinit basic shutdown umount final poweroff; do
        cp "$own/system/$name.target" "$root$own/system/"
    done
    cp $own/system/systemd-poweroff.service "$root$own/system/"
    ln -s "$own/systemd" "$root/init"
else
    ln -s usr/local/bin/everhook "$root/init"
fi
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do
    [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done
cp -R "$files/." "$root/"
cd "$root"
find . | busybox cpio -o -H newc 2> /dev/null | gzip -1 > "$image"
