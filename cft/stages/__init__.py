"""The stages as functions of a checked configuration: annotate, train, evaluate and others."""
