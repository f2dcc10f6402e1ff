"""Problems, rows and micro-batches: from a file to what a training step sees."""
