"""The counterfactual test of every token, and the store of its evidence."""
