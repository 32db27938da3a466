"""Hostile archives: each is refused in one line that names the member, nothing is written outside of the staging
directory, and nothing is left of the release."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trees import make_archive, member

from relfs.errors import RefusedError, RelfsError
from relfs.layout import DeployPath
from relfs.releases.adding import add
from relfs.releases.archive import Gate, Kind, Limits, Member, clean_path, parse_limits
from relfs.releases.sources import open_source

Members = list[tuple[tarfile.TarInfo, bytes]]

HOSTILE: dict[str, tuple[str, Members]] = {
    "absolute name": ("^/etc/cron.d/x: is an absolute name", [member("/etc/cron.d/x")]),
    "name with ..": (r"^a/\.\./\.\./x: has a \.\. in it", [member("a/../../x")]),
    "absolute link": ("^a: is a link that leads out .*, to /etc$", [member("a", kind=b"2", link="/etc")]),
    "link with ..": (r"^d/a: is a link that leads out .*, to \.\./\.\./x$", [member("d/a", kind=b"2", link="../../x")]),
    "link by way of another": (
        r"^b: is a link that leads out",
        [member("d/e/f"), member("a", kind=b"2", link="d/e"), member("b", kind=b"2", link="a/../../../x")],
    ),
    "chain of links": (
        "^b: is a link that leads out",
        [member("d/e/f"), member("d/up", kind=b"2", link=".."), member("b", kind=b"2", link="d/up/../x")],
    ),
    "below a link": ("^a/x: is below a, which is a symlink", [member("a", kind=b"2", link="."), member("a/x")]),
    "below a file": ("^a/x: is below a, which is a file", [member("a"), member("a/x")]),
    "over a link": ("^a: is there twice", [member("a", kind=b"2", link="b"), member("a")]),
    "over a file": ("^a/b: is there twice", [member("a/b"), member("./a//b")]),
    "directory over a file": ("^a: is there twice", [member("a"), member("a", kind=b"5")]),
    "file over the top": (r"^\.: is there twice", [member("./")]),
    "hard link to nothing": ("^a: is a hard link to etc/x, which is no", [member("a", kind=b"1", link="etc/x")]),
    "hard link out": (r"^\.\./x: has a \.\.", [member("a", kind=b"1", link="../x")]),
    "hard link, absolute": ("^/etc/shadow: is an absolute", [member("a", kind=b"1", link="/etc/shadow")]),
    "hard link to a link": (
        "^b: is a hard link to a, which is no", [member("a", kind=b"2", link="c"), member("b", kind=b"1", link="a")],
    ),
    "device": ("^dev/mem: is a device", [member("dev/mem", kind=tarfile.CHRTYPE)]),
    "disk": ("^sda: is a device", [member("sda", kind=tarfile.BLKTYPE)]),
    "fifo": ("^f: is a fifo", [member("f", kind=tarfile.FIFOTYPE)]),
    "setuid": ("^bin/su: would run as its owner", [member("bin/su", b"x", mode=0o4755)]),
    "setgid": ("^bin/su: would run as its owner", [member("bin/su", b"x", mode=0o2755)]),
    "too deep": ("^d/d/d.*: is too deep", [member("d/" * 300 + "x")]),
    "too long a name": ("^xxx.*: is too long a name", [member("x" * 300)]),
    "nothing": (r"none\.tar: holds nothing$", []),
}  # fmt: skip


def attempt(deploy: DeployPath, source: Path, limits: Limits | None = None, *, strip: int = 0) -> None:
    opened = open_source(str(source), strip=strip)
    try:
        add(deploy, opened, limits=limits or Limits())
    finally:
        opened.close()


def everything(app: Path) -> list[str]:
    """All names around the deploy path, but for what relfs keeps itself."""
    return sorted(str(path) for path in app.parent.rglob("*") if ".relfs" not in path.parts)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(deploy: DeployPath, app: Path, tmp_path: Path, name: str) -> None:
    message, members = HOSTILE[name]
    archive = (
        make_archive(tmp_path / "hostile.tar", member("good", b"x"), *members) if members else tmp_path / "none.tar"
    )
    if not members:
        make_archive(archive)
    before = everything(app)
    with pytest.raises(RelfsError, match=message) as caught:
        attempt(deploy, archive)
    assert "\n" not in str(caught.value)
    assert everything(app) == before
    assert not os.path.exists(Path(deploy.state_path) / "manifests")


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("/x", 0o100644, "absolute"),
        ("../x", 0o100644, r"has a \.\."),
        ("l", 0o120777, "leads out"),
        ("dev", 0o020644, "is a device"),
        ("bin/su", 0o104755, "would run as its owner"),
    ],
)
def test_a_hostile_zip_is_refused(
    deploy: DeployPath, app: Path, tmp_path: Path, name: str, mode: int, message: str
) -> None:
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, b"/etc/passwd")
    before = everything(app)
    with pytest.raises(RefusedError, match=message):
        attempt(deploy, tmp_path / "hostile.zip")
    assert everything(app) == before


def test_links_that_stay_inside_are_no_harm(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    links = {"d/up": "..", "a/b/c": "../../d/./x", "loop": "loop", "nowhere": "not/there", "top": ".", "dotty": "..x"}
    archive = make_archive(
        tmp_path / "a.tar", member("d/x", b"x"), *(member(name, kind=b"2", link=text) for name, text in links.items())
    )
    attempt(deploy, archive)
    assert {name: os.readlink(app / "releases/43" / name) for name in links} == links


# ---- bombs


def test_a_bomb_is_refused_by_its_ratio(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    """A hundred megabytes of zeros, in a hundred kilobytes."""
    bomb = tmp_path / "bomb.tar.gz"
    make = 'cd "$1" && head -c 100M /dev/zero >zeros && tar -c zeros | gzip >bomb.tar.gz && rm zeros'
    subprocess.run(["sh", "-c", make, "sh", tmp_path], check=True)
    with pytest.raises(RefusedError, match=r"bomb\.tar\.gz: unpacks to 100 times .* raise add.ratio in config.toml"):
        attempt(deploy, bomb, Limits(ratio=100))
    assert sorted(os.listdir(app / "releases")) == ["40", "41", "42"]


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def global_header(number: int) -> bytes:
    """One that says something of more than a mebibyte that no other says."""
    record = b"1048600 key%03d=%b\n" % (number, b"v" * (1048600 - 16))
    return header(b"g", len(record)) + record.ljust(-len(record) % 512 + len(record), b"\0")


def sparse_map() -> bytes:
    """A file with more holes than it says it has."""
    info = tarfile.TarInfo("x")
    info.size = 8 << 20
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    return info.tobuf(tarfile.PAX_FORMAT) + b"99999999999\n" + b"0\n" * (4 << 20)


@pytest.mark.parametrize(
    "head",
    [
        header(b"L", 8 << 20) + bytes(8 << 20),
        header(b"x", 8 << 20) + bytes(8 << 20),
        b"".join(global_header(number) + header(b"0", 0, str(number)) for number in range(5)),
        sparse_map(),
    ],
    ids=["a long name", "an extended header", "global headers", "a map of holes"],
)
def test_headers_without_an_end_are_refused(deploy: DeployPath, tmp_path: Path, head: bytes) -> None:
    """What tarfile would keep in memory, all of it."""
    (tmp_path / "bomb.tar").write_bytes(head + header(b"0", 0) + bytes(1024))
    with pytest.raises(RefusedError, match=r"bomb\.tar: has headers of more than 4 MiB"):
        attempt(deploy, tmp_path / "bomb.tar")


@pytest.mark.parametrize("kind", [b"x", b"L"], ids=["extended", "long name"])
def test_headers_of_headers_are_one_line(deploy: DeployPath, tmp_path: Path, kind: bytes) -> None:
    """Each is read within the one before."""
    (tmp_path / "chain.tar").write_bytes((header(kind, 8) + b"8 ab=cd\n".ljust(512, b"\0")) * 2000 + bytes(1024))
    with pytest.raises(RelfsError, match=r"chain\.tar: is no archive, or a broken one: maximum recursion"):
        attempt(deploy, tmp_path / "chain.tar")


def test_what_is_left_out_is_no_header(deploy: DeployPath, app: Path, tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar", member("README", bytes(5 << 20)), member("app/x", b"x"))
    attempt(deploy, archive, strip=1)
    assert os.listdir(app / "releases/43") == ["x"]


def test_a_zip_whose_members_overlap_is_refused(deploy: DeployPath, tmp_path: Path) -> None:
    """The directory names the same bytes ten times (as D. Fifield's bombs do many times)."""
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m0", bytes(20 << 20))
    data = plain.getvalue()
    at = data.rfind(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    entries = b"".join(data[at:end].replace(b"m0", b"m%d" % number) for number in range(10))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 10, 10, len(entries), at, 0)
    (tmp_path / "bomb.zip").write_bytes(data[:at] + entries + tail)
    with pytest.raises(RelfsError, match=r"unpacks to|is no archive, or a broken one"):
        attempt(deploy, tmp_path / "bomb.zip")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(members=2), r"a\.tar: has more than 2 members; .* add.members"),
        (Limits(bytes=20), r"a\.tar: holds more than 20 bytes; .* add.bytes"),
    ],
)
def test_limits_are_what_they_are_set_to(deploy: DeployPath, tmp_path: Path, limits: Limits, message: str) -> None:
    archive = make_archive(tmp_path / "a.tar", *(member(name, b"1234567890") for name in "abc"))
    with pytest.raises(RefusedError, match=message):
        attempt(deploy, archive, limits)
    attempt(deploy, archive, Limits(members=3, bytes=30))


def test_a_hole_counts_as_what_it_is_read_as(deploy: DeployPath, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with open(tmp_path / "d/hole", "wb") as file:
        file.truncate(1 << 36)
    subprocess.run(["tar", "-S", "-C", tmp_path / "d", "-cf", tmp_path / "a.tar", "hole"], check=True)
    with pytest.raises(RefusedError, match="more than 1048576 bytes"):
        attempt(deploy, tmp_path / "a.tar", Limits(bytes=1 << 20))


@pytest.mark.parametrize(("key", "value"), [("members", 0), ("bytes", "1G"), ("ratio", True), ("ratio", 1.5)])
def test_limits_are_whole_numbers(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^add.{key} must be a whole number"):
        parse_limits({key: value})


# ---- the gate against the kernel


_NAMES = st.sampled_from(["a", "b", "c"])
_TEXTS = st.lists(st.sampled_from(["a", "b", "c", "..", ".", ""]), min_size=1, max_size=5).map("/".join)
_MEMBERS = st.lists(st.tuples(st.lists(_NAMES, min_size=1, max_size=3).map("/".join), _TEXTS | st.none()), max_size=6)


@settings(max_examples=300, deadline=None)
@given(members=_MEMBERS)
@example(members=[("a/a", "a"), ("a/b", "c/../a//a")])
def test_no_link_that_passes_leads_out(
    members: list[tuple[str, str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What passes is made, and each link followed by the kernel from a root that it must not leave."""
    gate = Gate(Limits())
    passed = []
    for path, text in members:
        kind: Kind = "file" if text is None else "symlink"
        try:
            gate.admit(Member(path, kind, 0o644, 0, 0, text or ""))
        except RefusedError:
            continue
        passed.append((path, text))
    try:
        gate.finish()
    except RefusedError:
        return
    base = tmp_path_factory.mktemp("gate")
    top = base / "x/y/top"
    top.mkdir(parents=True)
    for path, text in passed:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            (top / path).touch()
        else:
            # Several slashes are one; but os.path.realpath() of Python 3.11 then loses its way if there is a loop.
            (top / path).symlink_to(re.sub("/+", "/", text) or ".")
    for path, text in passed:
        if text is not None:
            real = os.path.realpath(top / path)
            assert real == str(top) or real.startswith(f"{top}/") or _loops(top / path), (path, text, real)


def _loops(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == 40  # ELOOP
    return False


@pytest.mark.parametrize(
    ("name", "strip", "path"),
    [("./a/b", 0, "a/b"), ("a//b/", 0, "a/b"), ("./", 0, "."), ("./", 1, None), ("a/b", 1, "b"), ("a", 1, None)],
)
def test_names_are_cleaned(name: str, strip: int, path: str | None) -> None:
    assert clean_path(name, strip) == path
