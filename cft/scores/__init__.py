"""Token scores, stored with an annotation.

Nothing is re-exported: the configuration check imports `column`, and must not wait for torch, which `methods` imports.
"""
