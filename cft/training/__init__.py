"""One training, from batches to checkpoints."""
