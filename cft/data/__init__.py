"""Problems, rows and micro-batches: from a file to what a training step sees.

Nothing is re-exported: a source of problems needs no lightning, which the data module would load.
"""
