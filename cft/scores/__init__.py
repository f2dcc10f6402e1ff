"""Scores of tokens that are stored beside an annotation.

Nothing is re-exported: the configuration check reads names in `column`, and must not wait for torch, which `methods` loads.
"""
