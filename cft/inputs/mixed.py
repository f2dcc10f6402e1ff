"""Inputs of the forward pass in training (Intuitive Fine-Tuning, arXiv 2405.11870, its "temporal residual connection").

    pass 1    no gradient, true tokens:  guess_t = argmax of the logits at t - 1
    pass 2    e'_t = (1 - mix) e(y_t) + mix e(guess_t)  if t is a response position, else e(y_t)

The loss is that of the true tokens in pass 2. References and stored scores are also those of the true tokens.
`cft/training/selective_lm.py` runs the passes; this file mixes the embeddings. A response token at the start of a row has no
prediction and is not mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cft.errors import BadValue
from cft.losses.coefficient import Coefficient


class Inputs(Protocol):
    """Inputs of the model in training. mixes: whether training needs a first pass for guesses."""

    mixes: bool

    def prepare(self, model: PreTrainedModel) -> str:
        """Prepare the model before training. Returns a message about its parameters, or ""."""
        ...


class Tokens:
    """The true tokens."""

    mixes = False

    def prepare(self, model: PreTrainedModel) -> str:
        return ""


class Mixed:
    """Embeddings of response tokens mixed with those of the model's own guesses.

    Args:
        mix: schedule of the guess's fraction, 0 to 1; constant 0.2 in the authors' settings.
        frozen: whether embeddings are looked up without gradient. The authors' code uses a copy of the embeddings that is
            updated after each optimizer step, which is equivalent. The embedding matrix then gets no gradient as an input; if
            it is not tied to the output head, it is not trained at all.

    Raises:
        BadValue: `mix` is outside 0 to 1.
    """

    mixes = True

    def __init__(self, *, mix: Coefficient, frozen: bool) -> None:
        if max(mix.initial, mix.final) > 1:
            raise BadValue(
                f"Mixed.mix: expected initial and final from 0 to 1, found {mix.initial:g} and {mix.final:g}"
            )
        self.mix, self.frozen = mix, frozen

    def prepare(self, model: PreTrainedModel) -> str:
        weight, head = embedding_of(model).weight, model.get_output_embeddings()
        tied = head is not None and getattr(head, "weight", None) is weight
        if not self.frozen or tied or not isinstance(weight, nn.Parameter) or not weight.requires_grad:
            return ""
        weight.requires_grad_(False)  # otherwise DDP would wait for a gradient that is never computed
        return (
            "inputs.frozen: the input embeddings have no gradient and are not tied to the head, so they are not trained"
        )

    def embeddings(
        self, model: PreTrainedModel, ids_BT: Tensor, *, guess_M: Tensor, place_M: Tensor, mix: float
    ) -> Tensor:
        """[B, T, D] input embeddings. guess_M: guessed ids. place_M: their indices among the B * T positions."""
        embed = embedding_of(model)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            true_BTD = embed(ids_BT)
            if not mix:
                return true_BTD
            true_PD = true_BTD.flatten(0, 1)
            mixed_MD = (1 - mix) * true_PD[place_M] + mix * embed(guess_M[None])[0]
            return true_PD.index_copy(0, place_M, mixed_MD.to(true_PD.dtype)).view_as(true_BTD)


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """The embedding module. Some models scale embeddings inside it (Gemma 3), others after it (Gemma, Granite)."""
    return model.get_input_embeddings()  # type: ignore[return-value]


def guesses(hidden_MD: Tensor, project: Callable[[Tensor], Tensor], *, chunk_tokens: int) -> Tensor:
    """[M] the most probable next token for each hidden state; logits are computed for `chunk_tokens` states at a time."""
    chunks = range(
        0, max(1, len(hidden_MD)), chunk_tokens
    )  # at least one chunk, since gathering sharded weights is collective
    return torch.cat([project(hidden_MD[start : start + chunk_tokens]).argmax(-1) for start in chunks])
