"""The three stages as functions of a checked configuration: annotate, train, evaluate."""
