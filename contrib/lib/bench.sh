# shellcheck shell=bash
# How contrib/bench/* start: what they need is seen to, and then the Python file of the same name measures. The relfs
# measured is the one in $RELFS_VENV, or else this checkout's, installed into a virtual environment of the benchmarks'
# own. Sourced.

# shellcheck source=contrib/lib/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# need_for_measuring PACKAGE...
# Debian's packages beyond those that relfs needs are installed in any case: $RELFS_VENV vouches for relfs only.
# Sets RELFS_VENV.
need_for_measuring() {
    need_root
    need_fuse
    if [[ -n ${RELFS_VENV:-} ]]; then
        [[ -x $RELFS_VENV/bin/relfs ]] || fail "\$RELFS_VENV: there is no $RELFS_VENV/bin/relfs"
        [[ $# -eq 0 ]] || install_packages "$@" >&2
    else
        RELFS_VENV=$ROOT/.venv-bench
        install_packages "$@" >&2
        install_relfs "$RELFS_VENV" copy >&2
    fi
}

# measure PROGRAM.py ARGUMENT...
# Does not return.
measure() {
    exec env -u PYTHONPATH "$RELFS_VENV/bin/python" "$@"
}
