"""Training: the loop, callbacks, checkpoints and distributed strategies."""
