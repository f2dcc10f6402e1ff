"""Loading, hashing and exporting models; devices, text of tokens, the output head."""
