"""Engines: prompts and forks in, completions out, token ids on both sides (protocol: `cft.types.Engine`)."""
