"""relfs: a release file system. `current` is one value in memory; the bytes behind it stay native."""

__version__ = "0.1.0"
