"""Engines: prompt and fork in, completions out, token ids on both sides (protocol: `cft.types.Engine`)."""
