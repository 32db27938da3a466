"""The file system: the connection to the kernel, and what is answered on it."""
