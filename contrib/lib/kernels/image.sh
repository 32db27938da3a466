# shellcheck shell=bash
# What contrib/kernels boots: a kernel with an initrd, a disk with Debian's packages, a disk with this checkout. Sourced
# after setup.sh; $cache says where they are kept. What is there is used again, unless $rebuild says otherwise or what
# it was made from has changed. Running them is not here.
#
# Facts: Debian's kernels have the disk's driver as a module, so there is no boot without an initrd; the one that
# initramfs-tools makes takes longer to unpack and to look around, emulated, than all the rest. A loop mount, with which
# disks are often made, is not to be had in every container. A machine that is emulated takes minutes for what pip and a
# compiler do. The consequence, and the choice: the initrd is a static busybox with the modules named below; disks are
# written by mke2fs from a directory (-d); and the Debian inside is of the release of the Debian outside, so that this
# checkout's virtual environment, made outside, works there as it is, at the same path.

# shellcheck disable=SC2154
GUEST=$(dirname "${BASH_SOURCE[0]}")
VENV=$ROOT/.venv-test

MODULES=(virtio_pci virtio_blk virtio_console fuse loop overlay) # ext4 is part of the kernel itself

# What relfs and its tests need, and whom they watch at work.
GUEST_PACKAGES=(
    python3 fuse3 libfuse3-3 mount util-linux procps kmod "${FILE_TOOLS[@]}" "${RECORDERS[@]}"
    nginx busybox curl wrk sudo rsync make perl
)

# need_images KERNEL...
# All that is kept.
need_images() {
    local kernel
    install_packages qemu-system-x86 mmdebstrap cpio kmod xz-utils "${FILE_TOOLS[@]}"
    install_relfs "$VENV" editable
    need_root_disk
    for kernel in "$@"; do
        need_kernel "$kernel"
    done
}

# is_made FILE STAMP
# Whether the file is there and was made from what the stamp tells. $rebuild holds once for each file.
is_made() { [[ -e $1 && $(cat "$1.stamp" 2>/dev/null) == "$2" && (-z $rebuild || -n ${made[$1]:-}) ]]; }

now_made() {
    echo "$2" >"$1.stamp"
    made[$1]=yes
}

declare -A made=()

# ---- the disks ---------------------------------------------------------------------------------------------------

need_root_disk() {
    local disk=$cache/root.img stamp
    stamp="$(suite) ${GUEST_PACKAGES[*]} $(sha256sum <"$GUEST/guest")"
    ! is_made "$disk" "$stamp" || return 0
    say "making a disk of Debian's packages"
    rm -rf "$cache/root" "$disk.stamp"
    bootstrap >"$cache/mmdebstrap.log" 2>&1 ||
        fail "mmdebstrap could not make a Debian of $(suite) from $(mirror): $cache/mmdebstrap.log tells why"
    install -m 755 "$GUEST/guest" "$cache/root/sbin/guest"
    make_disk "$cache/root" "$disk" 4G
    rm -rf "$cache/root"
    now_made "$disk" "$stamp"
}

bootstrap() {
    mmdebstrap --mode=root --variant=minbase --include="$(IFS=, && echo "${GUEST_PACKAGES[*]}")" \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr "$(suite)" "$cache/root" "$(mirror)"
}

# make_checkout_disk PYTEST-ARGUMENT...
# What guest expects: the checkout, its path, and the arguments, each with a NUL at its end.
make_checkout_disk() (
    copy=$(mktemp -d "$cache/checkout.XXXXXX")
    trap 'rm -rf "$copy"' EXIT
    mkdir "$copy/checkout"
    tar -C "$ROOT" --exclude-vcs --exclude='./.venv-bench' --exclude='./.*_cache' --exclude='./.hypothesis' -cf - . |
        tar -C "$copy/checkout" -xf - || fail "this checkout could not be copied to $copy"
    echo "$ROOT" >"$copy/path"
    printf '%s\0' "$@" >"$copy/arguments"
    "$VENV/bin/python" -m compileall -q -s "$copy/checkout" -p "$ROOT" "$copy/checkout/relfs" "$copy/checkout/tests"
    make_disk "$copy" "$cache/checkout.img" 1G
)

# make_disk DIRECTORY FILE SIZE
make_disk() {
    rm -f "$2"
    truncate --size="$3" "$2"
    mke2fs -q -t ext4 -E lazy_itable_init=1 -d "$1" "$2" || fail "mke2fs could not make $2"
}

# ---- kernels -----------------------------------------------------------------------------------------------------

# need_kernel KERNEL
# Makes vmlinuz, initrd and version in $cache/KERNEL.
need_kernel() {
    local place=$cache/$1 stamp package
    stamp="${MODULES[*]} $(sha256sum <"$GUEST/initrd")"
    ! is_made "$place/initrd" "$stamp" || return 0
    say "fetching a kernel $1"
    mkdir -p "$place"
    rm -rf "$place/files" "$place/initrd.stamp"
    update_lists
    package=$(newest_kernel "$1")
    unpack_into "$place/files" "$package" busybox-static
    make_initrd "$place"
    rm -rf "$place/files"
    now_made "$place/initrd" "$stamp"
}

make_initrd() {
    local place=$1 files=$1/files tree=$1/files/initrd version
    version=$(basename "$files"/lib/modules/*)
    mkdir -p "$tree"/{bin,modules,proc,sys,dev,root}
    cp "$files/bin/busybox" "$tree/bin/"
    install -m 755 "$GUEST/initrd" "$tree/init"
    copy_modules "$files" "$version" "$tree/modules"
    (cd "$tree" && find . | cpio --quiet -o -H newc | gzip -1) >"$place/initrd" || fail "cpio could not make an initrd"
    cp "$files/boot/vmlinuz-$version" "$place/vmlinuz"
    echo "$version" >"$place/version"
}

# copy_modules FILES VERSION TARGET
# MODULES and what they need, numbered in the order of loading; busybox does not uncompress all that Debian compresses.
copy_modules() {
    local module path number=100
    depmod -b "$1" "$2"
    for module in "${MODULES[@]}"; do
        modprobe -d "$1" -S "$2" --show-depends "$module" || fail "$2 has no module $module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
        number=$((number + 1))
        case $path in
            *.xz) xz -dc "$path" ;;
            *) cat "$path" ;;
        esac >"$3/$number-$(basename "${path%.xz}")"
    done
}

# ---- Debian ------------------------------------------------------------------------------------------------------

suite() { (. /etc/os-release && echo "${VERSION_CODENAME:?this Debian has no name in /etc/os-release}"); }

# The kernels' packages are those of Debian 12 and its backports, whatever this machine is: found by a configuration of
# apt's own, so that the machine's stays as it is.
kernels_apt() {
    local tool=$1 lists=$cache/apt
    "$tool" -qq -o Dir::Etc::SourceList="$lists/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$lists/lists" -o Dir::Cache="$lists/cache" -o APT::Sandbox::User=root "${@:2}"
}

update_lists() {
    local suite lists=$cache/apt
    [[ -z ${lists_are_new:-} ]] || return 0
    mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
    for suite in bookworm bookworm-backports; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main"
    done >"$lists/sources.list"
    kernels_apt apt-get update >/dev/null || fail "$(mirror) cannot be reached, or has no bookworm-backports"
    lists_are_new=yes
}

# newest_kernel 6.1
# The name of its package; those with a suffix (-unsigned, -dbg) are something else.
newest_kernel() {
    local name
    name=$(kernels_apt apt-cache pkgnames "linux-image-$1." | grep -E -- '-cloud-amd64$' | sort -V | tail -n 1)
    [[ -n $name ]] || fail "$(mirror) has no cloud kernel $1: linux-image-$1.*-cloud-amd64"
    echo "$name"
}

# unpack_into DIRECTORY PACKAGE...
unpack_into() {
    local directory=$1 package
    mkdir -p "$directory/packages"
    (cd "$directory/packages" && kernels_apt apt-get download "${@:2}" >/dev/null) || fail "could not fetch ${*:2}"
    for package in "$directory"/packages/*.deb; do
        dpkg-deb -x "$package" "$directory"
    done
}
