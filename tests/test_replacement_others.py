"""Sequences that are no row of the table in test_replacement.py: other tools' own, rare options, ways to run them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from deploying import assert_journalled, assert_nobody_noticed, deploy
from deploytools import Tool
from mounting import Mount, Mounts
from sandbox import make_app

SWAPS = 6

BY_TOOL = {
    "deployer without mv -T": Tool(
        'ln -nfs "$R" "$D/release" && cd "$D" && ln -nfs --relative "$D/$R" "$D/current" && rm release',
        "ln -nfs --relative {D}/releases/",
    ),
    "deployer, absolute, BusyBox": Tool(
        'cd "$D" && busybox ln -nfs "$D/$R" "$D/current"', "busybox ln -nfs {D}/releases/"
    ),
    "envoy": Tool('ln -nfs "$D/$R" "$D/current" && chgrp -h www-data "$D/current"', "ln -nfs {D}/releases/"),
    "magallanes": Tool('cd "$D" && ln -snf "$R" current', "ln -snf releases/"),
    "mina": Tool('cd "$D" && rm -f current && ln -nfs "$R" current', "ln -nfs releases/"),
    "fabric": Tool(
        'cd "$D" && rm -f previous && mv current previous && ln -s "$R" current && rm previous', "ln -s releases/"
    ),
    "rocketeer": Tool('ln -s "$D/$R" "$D/cur-temp" && mv -Tf "$D/cur-temp" "$D/current"', "mv -Tf {D}/cur-temp"),
    "shipit": Tool(
        'cd "$D" && if [ -d current ] && [ ! -L current ]; then exit 1; fi && '
        'ln -nfs "$R" current_tmp && mv -fT current_tmp current',
        "mv -fT current_tmp current",
    ),
    "ansible file": Tool(
        'printf \'{"ANSIBLE_MODULE_ARGS": {"path": "%s/current", "src": "%s/%s", "state": "link"}}\' "$D" "$D" "$R" | '
        "/usr/bin/python3 -m ansible.modules.file",
        "/usr/bin/python3 -m ansible.modules.file",
    ),
    "ruby fileutils": Tool(
        "ruby -r fileutils -e 'FileUtils.rm_f ARGV[0]; FileUtils.ln_s ARGV[1], ARGV[0]' \"$D/current\" \"$R\"",
        "ruby -r fileutils",
    ),
    "python pathlib": Tool(
        "/usr/bin/python3 -c 'import sys, pathlib; new, R, current = map(pathlib.Path, sys.argv[1:]); "
        'new.symlink_to(R); new.replace(current)\' "$D/.new" "$R" "$D/current"',
        "/usr/bin/python3 -c",
    ),
    "rsync -l": Tool(
        'mkdir "$D/.tmp" && ln -s "$R" "$D/.tmp/current" && rsync -l "$D/.tmp/current" "$D/" && rm -r "$D/.tmp"',
        "rsync -l {D}/.tmp/current",
    ),
    "tar": Tool(
        'mkdir "$D/.tmp" && ln -s "$R" "$D/.tmp/current" && tar -C "$D/.tmp" -c current | tar -C "$D" -x && '
        'rm -r "$D/.tmp"',
        "tar -C {D} -x",
    ),
    "make": Tool(
        "printf 'all:\\n\\trm $D/current\\n\\t@ln -s $R $D/current\\n' | make -s -f -", "ln -s releases/"
    ),
}  # fmt: skip

BY_OPTION = {
    "ln -sfT": Tool('ln -sfT "$R" "$D/current"', "ln -sfT releases/"),
    "ln -sbT": Tool('ln -sbT "$R" "$D/current" && rm "$D/current~"', "ln -sbT releases/"),
    "mv -bT": Tool('ln -s "$R" "$D/new" && mv -bT "$D/new" "$D/current" && rm "$D/current~"', "mv -bT {D}/new"),
    "mv -fT from .tmp": Tool(
        'mkdir "$D/.tmp" && ln -s "$R" "$D/.tmp/current" && mv -fT "$D/.tmp/current" "$D/current" && rmdir "$D/.tmp"',
        "mv -fT {D}/.tmp/current",
    ),
    "cp -PT": Tool('ln -s "$R" "$D/new" && cp -PT "$D/new" "$D/current" && rm "$D/new"', "cp -PT {D}/new"),
    "cp -aT": Tool('ln -s "$R" "$D/new" && cp -aT "$D/new" "$D/current" && rm "$D/new"', "cp -aT {D}/new"),
    "cp --remove-destination": Tool(
        'ln -s "$R" "$D/new" && cp -PT --remove-destination "$D/new" "$D/current" && rm "$D/new"', "cp -PT --remove"
    ),
    "unlink(1), link text with dots": Tool(
        'unlink "$D/current"; ln -s "./releases//../$R/." "$D/current"', "ln -s ./releases//../releases/"
    ),
    "looked at in between": Tool(
        'rm "$D/current"; ! [ -L "$D/current" ] && ! [ -e "$D/current" ] && ! ls "$D" | grep -qx current && '
        'ln -s "$R" "$D/current"',
        "ln -s releases/",
    ),
}

BY_WAY = {
    "in the background": Tool('(rm "$D/current"; ln -s "$R" "$D/current") & wait $!', "ln -s releases/"),
    "each in the background": Tool('rm "$D/current" & wait $!; ln -s "$R" "$D/current" & wait $!', "ln -s releases/"),
    "xargs": Tool('echo "$D/current" | xargs rm; echo "$R $D/current" | xargs ln -s', "ln -s releases/"),
    "find": Tool('find "$D" -maxdepth 1 -name current -delete; ln -s "$R" "$D/current"', "ln -s releases/"),
    "pipeline": Tool('rm "$D/current" | cat; true | ln -s "$R" "$D/current"', "ln -s releases/"),
    "nohup": Tool('nohup rm "$D/current"; nohup ln -s "$R" "$D/current"', "ln -s releases/"),
    "timeout": Tool('timeout 60 rm "$D/current"; timeout 60 ln -s "$R" "$D/current"', "ln -s releases/"),
    "relative, from within": Tool('cd "$D/releases" && rm ../current && ln -s "$R" ../current', "ln -s releases/"),
    "through a link to the deploy path": Tool(
        'ln -s "$D" "$D.link" && rm "$D.link/current" && ln -s "$R" "$D.link/current" && rm "$D.link"',
        "ln -s releases/",
    ),
    "a script in a session of its own": Tool(
        'setsid -w sh -c \'rm "$D/current"; ln -s "$1" "$D/current"\' - "$R"', "ln -s releases/"
    ),
    "threads": Tool(
        "/usr/bin/python3 -c 'import os, sys, threading; current, R = sys.argv[1:]\n"
        "for call in (lambda: os.unlink(current), lambda: os.symlink(R, current)):\n"
        '    thread = threading.Thread(target=call); thread.start(); thread.join()\' "$D/current" "$R"',
        "/usr/bin/python3 -c",
    ),
    "sudo": Tool('sudo -n rm "$D/current"; sudo -n ln -s "$R" "$D/current"', "ln -s releases/"),
    "sudo with a terminal": Tool(
        'script -qec "sudo -n rm $D/current; sudo -n ln -s $R $D/current" /dev/null', "ln -s releases/"
    ),
    "script": Tool(
        'script -qec "rm $D/current" /dev/null; script -qec "ln -s $R $D/current" /dev/null', "ln -s releases/"
    ),
    "su": Tool('su -c "rm $D/current"; su -c "ln -s $R $D/current"', "(/bin/)?(ba)?sh|ln -s releases/"),
    "runuser": Tool('runuser -c "rm $D/current"; runuser -c "ln -s $R $D/current"', "ln -s releases/"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all of them, on release 40 between any two."""
    directory = tmp_path_factory.mktemp("others")
    mounts = Mounts(directory)
    try:
        yield mounts.start(make_app(directory / "app"))
    finally:
        mounts.take_away()


@pytest.mark.parametrize("name", [*BY_TOOL, *BY_OPTION, *BY_WAY])
def test_no_reader_notices(site: Mount, name: str) -> None:
    tool = {**BY_TOOL, **BY_OPTION, **BY_WAY}[name]
    before = len(site.journal())
    run = deploy(site.app, tool, SWAPS)
    assert all(os.listdir(site.app / "releases" / name) == ["index.html"] for name in ("40", "41", "42"))
    assert_nobody_noticed(run)
    assert_journalled(site, tool, SWAPS, skip=before)
    assert os.path.realpath(site.app / "current") == str(site.app / "releases/40")
    assert sorted(os.listdir(site.app)) == [".relfs", "current", "releases"], "nothing is left lying about"
