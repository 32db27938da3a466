"""Who sees which release: what decides it, and for how long. Knows nothing of FUSE, trio or the command line."""
