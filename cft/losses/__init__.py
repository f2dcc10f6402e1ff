"""The training objective: token losses, regularizers, aggregation, eligible tokens."""
