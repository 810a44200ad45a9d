"""Training: the loop, the order of data, checkpoints, reference losses by id."""
