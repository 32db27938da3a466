"""The names below a deploy path that mean something. Apart from layout.py, which takes longer to import."""

CURRENT = "current"
FOR_ALL = "@current"
"""In a mount, a link to what is current for everybody (fuse/preview.py)."""

RELEASES = "releases"
SHARED = "shared"
STATE = ".relfs"

SECOND_NAME = ".current.relfs@"
"""With a number, a name that the mount has for a link that `current` is to somebody (fuse/second_names.py). No listing
has it."""
