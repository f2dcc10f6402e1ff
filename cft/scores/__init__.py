"""Scores of tokens that are stored beside an annotation."""
