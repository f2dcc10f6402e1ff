"""Test sets: where their rows come from, how they are laid out, and several of them in one run."""
