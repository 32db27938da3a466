"""What outlives a worker: shared memory, descriptors and the channels they travel by. Standard library only."""
