"""What `conf/engine/*.yaml` builds: a frozen factory, which makes an engine of a model that need not be loaded here.

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

    name: as in engine=NAME. local: it decodes with the model of this process, as the validation of a training needs.
    samples: it takes forks with a temperature above 0. adjusts: it takes forks with an adjustment of the logits
    (`cft/decoding`); an engine that does not say so does not. hashes_weights: the weights it decodes with are those that the
    model's path names on this machine; else they are identified by `Engine.facts`.
    """

    name: ClassVar[str]
    local: ClassVar[bool]
    samples: ClassVar[bool]
    adjusts: ClassVar[bool]
    hashes_weights: ClassVar[bool]

    def __call__(self, model: LazyModel) -> Engine: ...


def device_beside(factory: EngineFactory, *, device: str) -> str:
    """What the process that an engine runs in needs, of the configured device: servers hold their GPUs already, and a worker
    that asks them would only keep one idle."""
    return device if factory.hashes_weights else "cpu"
