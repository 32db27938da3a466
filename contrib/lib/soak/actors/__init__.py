"""What runs beside relfs, each a process of its own, without anything of relfs in it. They judge nothing."""
