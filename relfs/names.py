"""The names below a deploy path that mean something. Apart from layout.py, which takes longer to import."""

CURRENT = "current"
RELEASES = "releases"
SHARED = "shared"
STATE = ".relfs"
