"""What `conf/engine/*.yaml` builds: a frozen factory, which makes an engine of a model that need not be loaded here.

factory = build(cfg.engine)                  before anything large is read
engine = factory(LazyModel(spec, tokenizer, device=...))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from cft.errors import UserError
from cft.types import Engine, Sampling

if TYPE_CHECKING:
    from cft.models.lazy import LazyModel


class EngineError(UserError, RuntimeError):
    """The engine cannot decode with this model; the message names the key to change."""


class EngineFactory(Protocol):
    """A frozen dataclass whose fields are the keys of its yaml.

    name: as in engine=NAME. local: it decodes with the model of this process, as the validation of a training needs.
    samples: it takes forks with a temperature above 0. hashes_weights: the weights it decodes with are those that the
    model's path names on this machine; else they are identified by `Engine.facts`.
    """

    name: ClassVar[str]
    local: ClassVar[bool]
    samples: ClassVar[bool]
    hashes_weights: ClassVar[bool]

    def __call__(self, model: LazyModel) -> Engine: ...


def require_local(factory: EngineFactory) -> None:
    """Raise EngineError unless the engine decodes with a model of this process."""
    if not factory.local:
        raise EngineError(
            f"engine={factory.name}: a training validates the weights that it has in memory, and this engine decodes with "
            "a copy of its own; expected engine=shared_prefix or engine=reference (the trained checkpoint can be evaluated "
            f"with it: cft evaluate engine={factory.name} checkpoint=...)"
        )


def require_samples(factory: EngineFactory, *, num_samples: int, key: str) -> None:
    """Raise EngineError where samples are asked for and the engine decodes greedily only. key: what holds their number."""
    if num_samples and not factory.samples:
        raise EngineError(
            f"{key}={num_samples}: engine={factory.name} decodes greedily only; expected {key}=0, or an engine that draws "
            "samples which do not depend on the batch, such as engine=shared_prefix"
        )


def require_greedy(sampling: Sampling, *, name: str) -> None:
    """Raise EngineError for a sampled fork. For engines whose samples would depend on what else is in the batch."""
    if sampling.temperature != 0:
        raise EngineError(
            f"engine={name} decodes greedily only: its samples would depend on the batch; use engine=shared_prefix"
        )
