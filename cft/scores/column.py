"""Per-token columns of a training row: names of an objective's needs, and stored columns.

name of the need          source
reference_logprob         the reference's stored column, or a live reference model (`cft/references/models.py`)
group                     the configured grouping (`cft/data/columns.py`)
any other name            the stored score of that name (`cft/scores/store.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the config check imports this module, and numpy would cost it a fifth of a second
    import numpy as np
    from numpy.typing import NDArray

    from cft.types import AnnotatedResponse

REFERENCE_LOGPROB = "reference_logprob"
REFERENCE_DISTRIBUTION = "reference_distribution"
GROUP = "group"
OWN_LOGPROB = "logprob"  # the annotation's own column: log-probs of the annotating model

# Messages for needs that the configuration does not meet (`cft/config/needs.py` raises them before anything is loaded).
NO_REFERENCE = {
    REFERENCE_LOGPROB: (
        "this method compares the policy's log-probs with those of a reference model, and none is configured; set "
        "reference=annotation (log-probs of the annotating model, already stored), reference=score reference.name=... "
        "(another frozen model, stored by cft score), or a live model: reference=initial"
    ),
    REFERENCE_DISTRIBUTION: (
        "this method needs the full distribution of a reference model, which is not stored; set reference=initial (a "
        "frozen copy), reference=adapter_off (with model/lora=default) or reference=teacher"
    ),
}
NO_GROUPS = (
    "this loss compares two groups of tokens, and none are configured; choose a grouping that divides the mask's tokens, such "
    "as mask=all groups=critical"
)


class Column(Protocol):
    """A per-token column: [R] float32. needs, fit, facts: as in `cft.masks.base.Mask`."""

    needs: tuple[str, ...]

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None: ...

    def facts(self) -> dict[str, Any]: ...

    def __call__(self, row: AnnotatedResponse) -> NDArray[np.float32]: ...


class StoredColumn:
    """A stored score, or the annotation's own log-probs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.needs: tuple[str, ...] = () if name == OWN_LOGPROB else (name,)

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        """Nothing to learn."""

    def facts(self) -> dict[str, Any]:
        return {}

    def __call__(self, row: AnnotatedResponse) -> NDArray[np.float32]:
        return row.logprob if self.name == OWN_LOGPROB else row.scores[self.name]
