"""The life of a release: added, checked, used, removed. Nothing here knows of FUSE, trio or the command line."""
