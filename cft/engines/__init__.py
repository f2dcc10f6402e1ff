"""Engines: prompts and forks in, completions out, token ids on both sides (protocol: `cft.types.Engine`)."""

from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import EngineError, SharedPrefixEngine

__all__ = [
    "EngineError",
    "ReferenceEngine",
    "SharedPrefixEngine",
]
