"""A model ready for use: what every stage that needs one does between its config and its first forward pass."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cft.models.architecture import context_length, require_plain_attention
from cft.models.device import place
from cft.models.load import ModelSpec, eos_ids, load_causal_lm, weights_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer.

    Args:
        spec: What it was loaded by.
        tokenizer: That belongs to it.
        model: In eval mode.
        fingerprint: SHA-256 of its weights as they were loaded, "" where not requested.
    """

    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    fingerprint: str

    @property
    def eos(self) -> tuple[int, ...]:
        """Every token that ends a response. Raises ModelError where there is none."""
        return eos_ids(self.model, self.tokenizer)

    @property
    def context(self) -> int:
        """Tokens of prompt and response together."""
        return context_length(self.model.config)


def load(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: str,
    ends: Collection[int | None] = (),
    fingerprint: bool = True,
    shard: int = 0,
    num_shards: int = 1,
) -> Loaded:
    """The model of a spec on a device. The tokenizer comes first, since what depends on it alone is checked without weights.

    Args:
        spec: Path, precision and adapters.
        tokenizer: Of the same spec.
        device: "cpu", "auto", or as in `cft.models.device.place`; so are `shard` and `num_shards`.
        ends: Tokens that end a response beside the checkpoint's own, such as the prompt's.
        fingerprint: Whether to hash the weights.

    Raises:
        ModelError: it cannot be loaded, or its attention is none that the code knows.
        DeviceError: the device is not there.
    """
    model = load_causal_lm(spec, ends=ends)
    require_plain_attention(model)
    weights = weights_hash(model) if fingerprint else ""  # before they go to a device, from which they would come back
    place(model, device=device, shard=shard, num_shards=num_shards)
    return Loaded(spec, tokenizer, model, weights)
