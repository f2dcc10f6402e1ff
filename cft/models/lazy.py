"""A lazily loaded model: its config and facts are available without weights; the weights are loaded on first use.

Stages can raise errors based on the facts before anything large is read, and engines that decode elsewhere (another process, a
server) never load the weights in this process.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from cft.models.architecture import context_length
from cft.models.device import place
from cft.models.eos import all_eos_ids, further_eos_ids
from cft.models.export import require_intact
from cft.models.hashes import hash_of_files
from cft.models.load import (
    ModelSpec,
    load_causal_lm,
    locate,
    read_config,
    read_generation_config,
    weight_files,
    weights_hash,
)
from cft.types import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class LazyModel:
    """A model with its tokenizer.

    Args:
        spec: Path, precision and adapters.
        tokenizer: Tokenizer of the same spec; it is needed for checks that do not need the weights.
        device: As in `cft.models.device.place`.
        ends: Tokens that end a response in addition to the checkpoint's own, such as the prompt's; None entries are ignored.
        shard: As in `cft.models.device.place`.
        num_shards: As in `cft.models.device.place`.
        empty: Create the model without weights, see `load_causal_lm`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str,
        ends: Collection[int | None] = (),
        shard: int = 0,
        num_shards: int = 1,
        empty: bool = False,
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.device = device
        self._ends, self._empty = ends, empty
        self._shards = {"shard": shard, "num_shards": num_shards}
        self._model: PreTrainedModel | None = None
        self._weights = ""

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, spec: ModelSpec) -> Self:
        """Wrap a loaded model, which stays on its device."""
        found = cls(spec, tokenizer, device=str(model.device))
        found._model = model
        return found

    @property
    def source(self) -> str:
        """The folder or hub id of config, tokenizer and weights."""
        return locate(self.spec.path)

    @cached_property
    def config(self) -> PreTrainedConfig:
        if self._model is not None:
            return self._model.config
        return read_config(self.spec, self.source, tokenizer=self.tokenizer)

    @cached_property
    def facts(self) -> ModelFacts:
        """Facts about the model. Raises ModelError if no token can end a response."""
        if self._model is not None:
            generation, further = self._model.generation_config, set[int]()
        else:
            generation = read_generation_config(self.spec, self.source, self.config)
            further = further_eos_ids(self.spec, self.tokenizer, ends=self._ends)
        rows: Any = getattr(self.config.get_text_config(decoder=True), "vocab_size", None)
        rows = rows if isinstance(rows, int) else len(self.tokenizer)
        return ModelFacts(
            eos_ids=all_eos_ids(generation, self.tokenizer, further=further, name=self.spec.path),
            context=context_length(self.config),
            vocab_size=rows,
            dtype=self.spec.dtype,
            unnamed_ids=frozenset(range(rows)) - frozenset(self.tokenizer.get_vocab().values()),
        )

    @property
    def is_loaded(self) -> bool:
        return self._model is not None

    def load(self) -> PreTrainedModel:
        """The model on its device, in eval mode; loaded once.

        Raises:
            ModelError: It cannot be loaded.
            DeviceError: The device is not available.
        """
        if self._model is None:
            model = load_causal_lm(self.spec, ends=self._ends, empty=self._empty)
            place(model, device=self.device, **self._shards)
            self._model = model
        return self._model

    def weights(self) -> str:
        """SHA-256 of the weights as loaded, adapters included. Computed from the files if they hold the weights under the
        model's own names; otherwise the model is loaded."""
        if not self._weights:
            found = None
            as_in_files = self._model is None and self.spec.lora is None and not self.spec.added_tokens
            if as_in_files and (folder := weight_files(self.spec, self.source)):
                require_intact(folder, weights=True)
                found = hash_of_files(folder, config=self.config, dtype=self.spec.dtype)
            self._weights = found or weights_hash(self.load())
        return self._weights
