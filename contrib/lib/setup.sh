# shellcheck shell=bash
# What contrib/test, contrib/quickstart and contrib/bench/resolve need before they can start: root, /dev/fuse,
# Debian's packages, and a virtual environment with relfs in it. Sourced. Each step does nothing where its work is
# already done, so a second run is quick and needs no network. What is done with relfs afterwards is not here.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
PYTHON=${PYTHON:-/usr/bin/python3}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # su(1) without a login leaves these out

PACKAGES=(
    fuse3 libfuse3-dev pkg-config gcc libc6-dev python3 python3-venv python3-dev # to build pyfuse3, and to mount
    nginx wrk busybox curl                                                      # to serve, to load, to compare with
    mount util-linux procps                                                     # umount, findmnt, runuser, ps
)

# shellcheck disable=SC2034 # for those who source this file
FILE_TOOLS=(attr e2fsprogs) # setfattr, chattr: for the tests that compare with a plain directory

# What releases are made from; file systems that keep more, or share.
# shellcheck disable=SC2034 # likewise
SOURCES=(git bzip2 xz-utils zstd lz4 zip acl xfsprogs dpkg-dev debian-archive-keyring)

DEBIAN_KEYS=/usr/share/keyrings/debian-archive-keyring.gpg

# shellcheck disable=SC2034 # likewise
CERTIFIERS=(openssl) # for the tests that ask a web site by TLS

# shellcheck disable=SC2034 # likewise
RECORDERS=(strace) # for the tests that cut the power, or kill, after each system call

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

need_root() {
    [[ $EUID -eq 0 ]] || fail "must be run as root: sudo $0"
}

need_fuse() {
    [[ -e /dev/fuse ]] || modprobe fuse 2>/dev/null || true
    [[ -c /dev/fuse ]] || fail "/dev/fuse is missing: this kernel has no FUSE, or this container was not given it"
    (: <>/dev/fuse) 2>/dev/null || fail "/dev/fuse cannot be opened: this container may not use it"
}

# ---- packages ----------------------------------------------------------------------------------------------------

missing_packages() {
    local package
    for package in "$@"; do
        case $(dpkg-query -W -f '${db:Status-Status} ' "$package" 2>/dev/null) in
            installed*) ;;
            *) echo "$package" ;;
        esac
    done
}

# install_packages [PACKAGE...]: these, and what everybody needs.
install_packages() {
    local wanted=("${PACKAGES[@]}" "$@") missing old_servers
    command -v dpkg-query >/dev/null || fail "this is not Debian: install by hand what is like ${wanted[*]}"
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    [[ ${#missing[@]} -gt 0 ]] || return 0
    say "installing ${missing[*]}"
    old_servers=$(servers)
    apt_get update || say "apt-get update failed: going on with the package lists this machine has"
    (hold_servers && apt_get install -y --no-install-recommends "${missing[@]}") ||
        fail "apt-get could not install ${missing[*]}"
    keep_new_servers_off "$old_servers"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

# unpack_packages DIRECTORY PACKAGE...: their files, for what must not be installed on a machine that is in use (another
# init system). DIRECTORY is made anew when the list changes.
unpack_packages() (
    directory=$1
    shift
    [[ $(cat "$directory/.packages" 2>/dev/null) != "$*" ]] || return 0
    say "unpacking $*"
    debs=$(mktemp -d) || return
    trap 'rm -rf "$debs"' EXIT
    rm -rf "$directory"
    cd "$debs" || return
    apt_get update || say "apt-get update failed: going on with the package lists this machine has"
    apt_get -o APT::Sandbox::User=root download "$@" || fail "apt-get could not download $*"
    for deb in *.deb; do
        dpkg-deb --extract "$deb" "$directory" || fail "$deb could not be unpacked"
    done
    echo "$*" >"$directory/.packages"
)

# Where this machine has its packages from.
mirror() {
    local uri
    # shellcheck disable=SC2016 # apt-get puts in what it means
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed 1q)
    [[ -n $uri ]] || fail "apt-get does not know where Debian's packages are: run apt-get update"
    echo "$uri"
}

# fetch_sources DIRECTORY SUITE PACKAGE SUITE PACKAGE...: Debian's source packages, as they are downloaded, each in
# DIRECTORY/SUITE. apt's own lists are left alone: most machines have none of sources. DIRECTORY is made anew when the
# list changes.
fetch_sources() (
    directory=$1
    shift
    [[ $(cat "$directory/.sources" 2>/dev/null) != "$*" ]] || return 0
    say "fetching the sources $*"
    mirror=$(mirror) || return
    lists=$(mktemp -d) || return
    trap 'rm -rf "$lists"' EXIT
    rm -rf "$directory"
    echo "$*" >"$lists/wanted"
    while [[ $# -gt 0 ]]; do
        mkdir -p "$directory/$1" "$lists/$1/partial"
        echo "deb-src [signed-by=$DEBIAN_KEYS] $mirror $1 main" >"$lists/$1.list"
        own=(-o APT::Sandbox::User=root -o Dir::Etc::SourceList="$lists/$1.list" -o Dir::Etc::SourceParts=/dev/null
            -o Dir::State::Lists="$lists/$1" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
        (cd "$directory/$1" && apt_get "${own[@]}" update && apt_get "${own[@]}" source --download-only "$2") ||
            fail "the source package $2 of Debian $1 could not be fetched"
        shift 2
    done
    mv "$lists/wanted" "$directory/.sources"
)

# The units that Debian would start as it installs them; nobody asked for a web server on port 80, nor for PHP.
servers() {
    local unit
    for unit in /lib/systemd/system/{nginx,php*-fpm}.service; do
        [[ ! -e $unit ]] || echo "${unit##*/}"
    done
}

# For as long as the calling subshell lives, none of them may be started; a machine with a policy of its own keeps that
# one.
hold_servers() {
    local policy=/usr/sbin/policy-rc.d
    [[ ! -e $policy ]] || return 0
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    # shellcheck disable=SC2016 # $word is the policy's
    printf '%s\n' '#!/bin/sh' '# Of relfs: holds web servers while they are being installed. Safe to remove.' \
        'for word; do case $word in nginx | php*-fpm | nginx.service | php*-fpm.service) exit 101 ;; esac; done' >$policy
    chmod 755 $policy
}

# Nor at the next boot. Those that were there before, $1, are their owner's.
keep_new_servers_off() {
    local unit
    [[ -d /run/systemd/system ]] || return 0
    for unit in $(comm -13 <(echo "$1") <(servers)); do
        systemctl --quiet disable --now "$unit" 2>/dev/null || true
    done
}

# ---- the virtual environment -------------------------------------------------------------------------------------

need_python() {
    command -v "$PYTHON" >/dev/null || fail "$PYTHON is missing: name a Python of at least 3.11 in \$PYTHON"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$PYTHON is not a Python of at least 3.11: name one in \$PYTHON"
}

# install_relfs VENV editable|copy
# Sets relfs_is_new where it had to do something.
install_relfs() {
    local venv=$1 how=$2 stamp
    relfs_is_new=
    need_python
    stamp=$(stamp_of "$how")
    [[ $(cat "$venv/relfs-stamp" 2>/dev/null) != "$stamp" ]] || return 0
    say "installing relfs into $venv"
    make_venv "$venv"
    rm -f "$venv/relfs-stamp"
    "install_$how" "$venv" || fail "pip could not install relfs into $venv"
    echo "$stamp" >"$venv/relfs-stamp"
    # shellcheck disable=SC2034 # for those who source this file
    relfs_is_new=yes
}

# What an installation was made from: when this changes it is made again.
stamp_of() {
    {
        echo "$1 $ROOT"
        "$PYTHON" -VV
        cat "$ROOT/pyproject.toml"
        [[ $1 = editable ]] || (cd "$ROOT" && find relfs -name '*.py' -print0 | sort -z | xargs -0 sha256sum)
    } | sha256sum
}

make_venv() {
    local venv=$1 version='import sys, pip; print(sys.version)'
    if [[ -e $venv && ! -e $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
        fail "$venv is something else than a virtual environment: move it away"
    fi
    [[ $("$venv/bin/python" -c "$version" 2>/dev/null) != $("$PYTHON" -c 'import sys; print(sys.version)') ]] ||
        return 0
    "$PYTHON" -m venv --clear "$venv" || fail "$PYTHON could not make a virtual environment in $venv"
}

install_editable() { pip_install "$1" --editable "${ROOT}[test]"; }

# From a copy, because setuptools leaves build/ in the directory it builds, and takes from there what was deleted since.
install_copy() (
    copy=$(mktemp -d) || return
    trap 'rm -rf "$copy"' EXIT
    cp -R "$ROOT/relfs" "$ROOT/pyproject.toml" "$ROOT/README.md" "$copy" && pip_install "$1" "$copy"
)

# With PYTHONDONTWRITEBYTECODE in the environment every start of a command would compile relfs anew.
pip_install() {
    env -u PYTHONDONTWRITEBYTECODE -u PYTHONPATH -u PYTHONHOME \
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore "${@:2}"
}
