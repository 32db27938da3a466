"""opendir(3) and its like, which Python does not offer: names, inode numbers and positions as readdir(3) gives them."""

from __future__ import annotations

import ctypes


class _Entry(ctypes.Structure):
    """struct dirent of 64-bit glibc."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Entry)
_libc.telldir.restype = ctypes.c_long


class Directory:
    """What opendir(3) returns."""

    def __init__(self, path: str) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(path.encode()))
        assert self._stream.value is not None

    def read(self) -> _Entry | None:
        """The next entry; None at the end."""
        entry = _libc.readdir(self._stream)
        return entry.contents if entry else None

    def rest(self) -> list[tuple[bytes, int]]:
        """The names from here on, each with its inode number."""
        found = []
        while (entry := self.read()) is not None:
            found.append((entry.name, entry.ino))
        return found

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def inodes_of(path: str) -> dict[bytes, int]:
    """What a directory lists, `.` and `..` among it, with the inode numbers that it lists."""
    directory = Directory(path)
    found = directory.rest()
    directory.close()
    return dict(found)
