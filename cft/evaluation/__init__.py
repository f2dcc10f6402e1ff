"""Metrics of a model, with intervals."""
