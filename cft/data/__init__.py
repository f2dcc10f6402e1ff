"""Data: problems, rows and micro-batches, from files to the batches of a training step.

Nothing is re-exported, so that sources of problems can be imported without lightning, which the data module needs.
"""
