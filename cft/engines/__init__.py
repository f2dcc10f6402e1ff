"""Engines: prompts and forks in, completions out, token ids on both sides (protocol: `cft.types.Engine`).

`Reference`, `SharedPrefix`, ... are the factories named in conf/engine/*.yaml; they make an engine from a model.
"""

from cft.engines.continuous import Continuous, ContinuousEngine
from cft.engines.factory import EngineError
from cft.engines.reference import Reference, ReferenceEngine
from cft.engines.server import Server
from cft.engines.shared_prefix import SharedPrefix, SharedPrefixEngine
from cft.engines.vllm import Vllm

__all__ = [
    "Continuous",
    "ContinuousEngine",
    "EngineError",
    "Reference",
    "ReferenceEngine",
    "Server",
    "SharedPrefix",
    "SharedPrefixEngine",
    "Vllm",
]
