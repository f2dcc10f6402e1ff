"""Counterfactual evidence about every response token, and its store."""
