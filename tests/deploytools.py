"""The tools that replace `current`, each as a shell runs it: the rows of the table in test_replacement.py.

A script finds the deploy path in $D, the release relative to it in $R, and this directory in $TESTS. A tool that does
many swaps in one process (`whole`) does $N of them by itself, to 41 and 40 by turns.
"""

from __future__ import annotations

from dataclasses import dataclass

_UNLINK_AND_LINK = {
    "php": 'php -r \'unlink($argv[1]) && symlink($argv[2], $argv[1]) or exit(1);\' -- "$D/current" "$R"',
    "python": (
        "/usr/bin/python3 -c 'import os, sys; os.unlink(sys.argv[1]); os.symlink(sys.argv[2], sys.argv[1])'"
        ' "$D/current" "$R"'
    ),
    "ruby": 'ruby -e \'File.unlink(ARGV[0]); File.symlink(ARGV[1], ARGV[0])\' "$D/current" "$R"',
    "perl": 'perl -e \'unlink $ARGV[0] or die; symlink $ARGV[1], $ARGV[0] or die\' "$D/current" "$R"',
}


@dataclass(frozen=True)
class Tool:
    """One way to replace `current`.

    `named` is what the journal must call it, a regular expression for the start of a command line with {D} for the
    deploy path.
    """

    script: str
    named: str
    whole: bool = False


TOOLS = {
    "gnu mv -T": Tool('ln -s "$R" "$D/new" && mv -T "$D/new" "$D/current"', "mv -T {D}/new"),
    "gnu ln -sfn": Tool('ln -sfn "$R" "$D/current"', "ln -sfn releases/"),
    "gnu ln -nfs --relative": Tool('ln -nfs --relative "$D/$R" "$D/current"', "ln -nfs --relative {D}/releases/"),
    "busybox ln -sfn": Tool('busybox ln -sfn "$R" "$D/current"', "busybox ln -sfn releases/"),
    "busybox mv -T": Tool(
        'busybox ln -s "$R" "$D/new" && busybox mv -T "$D/new" "$D/current"', "busybox mv -T {D}/new"
    ),
    "capistrano": Tool(
        'cap --rakefile "$TESTS/capistrano/Capfile" here swaps', "mv {D}/releases/current {D}$", whole=True
    ),
    "deploy_helper": Tool(
        'printf \'{"ANSIBLE_MODULE_ARGS": {"path": "%s", "release": "%s", "state": "finalize", "clean": false}}\''
        ' "$D" "${R#releases/}" | /usr/bin/python3 -m '
        "ansible_collections.community.general.plugins.modules.deploy_helper",
        "/usr/bin/python3 -m ansible_collections.community.general.plugins.modules.deploy_helper",
    ),
    "rm; ln": Tool('rm "$D/current"; ln -s "$R" "$D/current"', "ln -s releases/"),
    "rm -f && ln": Tool('rm -f "$D/current" && ln -s "$R" "$D/current"', "ln -s releases/"),
    **{
        f"unlink, symlink: {name}": Tool(script, rf"(/usr/bin/)?{name}3? -[rce] .* {{D}}/current releases/")
        for name, script in _UNLINK_AND_LINK.items()
    },
    "exchange": Tool(
        '/usr/bin/python3 "$TESTS/exchange.py" "$D" "$N"', "/usr/bin/python3 {TESTS}/exchange.py {D}", whole=True
    ),
}
