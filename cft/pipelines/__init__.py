"""Several stages with one command: named steps, checked together, run one after the other, skipped where they are done."""
