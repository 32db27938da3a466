"""Which kernels' RESEND is trusted: stable series, distributions' numbering, and what an administrator may overrule."""

from __future__ import annotations

import pytest

from relfs.fuse.protocol import CACHE_SYMLINKS, HAS_RESEND
from relfs.fuse.resend import choose, judge

FLAGS = HAS_RESEND | CACHE_SYMLINKS


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("6.9.0", "unsafe"),
        ("6.11.11", "unsafe"),
        ("6.12.95", "unsafe"),
        ("6.12.96", "safe"),
        ("6.12.101", "safe"),
        ("6.13.12", "unsafe"),
        ("6.17.200", "unsafe"),
        ("6.18.38-0-lts", "unsafe"),
        ("6.18.39", "safe"),
        ("6.18.44-fc-v509", "safe"),
        ("6.19.14", "unsafe"),
        ("7.0.99", "unsafe"),
        ("7.1", "unsafe"),
        ("7.1.3", "unsafe"),
        ("7.1.4", "safe"),
        ("7.2-rc1", "safe"),
        ("8.0.0", "safe"),
        ("6.12.0-124.el10.x86_64", "unsafe"),
        ("my-own-kernel", "unsafe"),
    ],
)
def test_by_release(release: str, state: str) -> None:
    assert judge(release, "#1 SMP", FLAGS).state == state


@pytest.mark.parametrize(
    ("release", "version", "state"),
    [
        ("6.12.0-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.94-1 (2026-06-12)", "unsafe"),
        ("6.12.0-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.96-1 (2026-07-20)", "safe"),
        ("6.12.94+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.94-1 (2026-06-12)", "unsafe"),
        ("6.12.99+deb13-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.99-1~bpo12+1 (2026-08-02)", "safe"),
    ],
)
def test_debian_tells_in_its_version(release: str, version: str, state: str) -> None:
    assert judge(release, version, FLAGS).state == state


@pytest.mark.parametrize("release", ["6.1.0-18-amd64", "6.18.44", "7.2.0"])
def test_what_is_not_offered_is_missing_whatever_the_number(release: str) -> None:
    assert judge(release, "#1 SMP Debian 6.1.76-1", CACHE_SYMLINKS).state == "missing"


def test_the_reason_names_the_kernel_and_the_fault() -> None:
    assert "6.12.94" in judge("6.12.0", "#1 Debian 6.12.94-1", FLAGS).reason
    assert "CVE-2026-64265" in judge("6.12.94", "#1", FLAGS).reason
    assert "'my-own-kernel'" in judge("my-own-kernel", "#1", FLAGS).reason


SAFE, UNSAFE, MISSING = judge("7.2", "", FLAGS), judge("6.9.1", "", FLAGS), judge("6.1.0", "", 0)


def test_only_what_is_safe_is_used() -> None:
    assert choose(SAFE, {}).by == "resend"
    assert choose(UNSAFE, {}).by == "relay"
    assert choose(MISSING, {}).by == "relay"
    assert choose(UNSAFE, {}).reason == UNSAFE.reason


def test_an_administrator_may_accept_what_is_unsafe_but_not_what_is_missing() -> None:
    assert choose(UNSAFE, {"RELFS_RESEND": "1"}).by == "resend"
    assert choose(MISSING, {"RELFS_RESEND": "1"}).by == "relay"


def test_refusing_comes_first() -> None:
    assert choose(SAFE, {"RELFS_NO_RESEND": "1", "RELFS_RESEND": "1"}).by == "relay"
    assert choose(SAFE, {"RELFS_NO_RESEND": "0"}).by == "resend"
    assert "RELFS_NO_RESEND" in choose(SAFE, {"RELFS_NO_RESEND": "1"}).reason
