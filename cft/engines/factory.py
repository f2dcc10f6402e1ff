"""Engine factories, built from `conf/engine/*.yaml`. A factory makes an engine from a model that may not be loaded yet.

factory = build(cfg.engine)                  before anything large is read
engine = factory(LazyModel(spec, tokenizer, device=...))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from cft.errors import UserError
from cft.types import Engine

if TYPE_CHECKING:
    from cft.models.lazy import LazyModel


class EngineError(UserError, RuntimeError):
    """The engine cannot decode with this model; the message names the key to change."""


class EngineFactory(Protocol):
    """A frozen dataclass whose fields are the keys of its yaml.

    name: as in engine=NAME.
    local: it decodes with the model of this process, as required for validation during training.
    samples: it accepts forks with a temperature above 0.
    adjusts: it accepts forks with a logit adjustment (`cft/decoding`); if missing, it does not.
    hashes_weights: it decodes with the weights at the model's path on this machine; otherwise `Engine.facts` identifies them.
    """

    name: ClassVar[str]
    local: ClassVar[bool]
    samples: ClassVar[bool]
    adjusts: ClassVar[bool]
    hashes_weights: ClassVar[bool]

    def __call__(self, model: LazyModel) -> Engine: ...


def device_beside(factory: EngineFactory, *, device: str) -> str:
    """The device that an engine's process needs: "cpu" for servers, which have GPUs of their own, since a process that only
    sends requests would leave its GPU idle; else the configured device."""
    return device if factory.hashes_weights else "cpu"
