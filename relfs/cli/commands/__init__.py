"""The commands of relfsctl, a module each; every module has one `command`."""
