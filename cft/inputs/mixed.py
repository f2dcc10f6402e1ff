"""Inputs of the training's forward pass (Intuitive Fine-Tuning, arXiv 2405.11870, its "temporal residual connection").

    pass 1    no gradient, true tokens:  guess_t = argmax of the logits at t - 1
    pass 2    e'_t = (1 - mix) e(y_t) + mix e(guess_t)  where t is a response position, e(y_t) elsewhere

The loss is of pass 2 and of the true tokens, as are references and stored scores. `cft/training/selective_lm.py` runs the
passes; here is what is mixed. A response token at the start of a row is predicted by nothing and stays as it is.
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
    """mixes: whether training has a first pass."""

    mixes: bool

    def prepare(self, model: PreTrainedModel) -> str:
        """Before training. Returns what to say of the model's parameters, "" for nothing."""
        ...


class Tokens:
    """The true tokens, as usual."""

    mixes = False

    def prepare(self, model: PreTrainedModel) -> str:
        return ""


class Mixed:
    """Embeddings of response tokens mixed with those of the model's own guesses.

    Args:
        mix: share of the guess over the training, 0 to 1; 0.2 all along in the authors' settings.
        frozen: whether embeddings are looked up without gradient. In the authors' code they come from a copy that is renewed
            after each optimizer step, which is the same. The input side of the embedding matrix then has no gradient: where it
            is not tied to the output head it is not trained at all.

    Raises:
        BadValue: `mix` leaves 0 to 1.
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
        weight.requires_grad_(False)  # or DDP would wait for a gradient that never comes
        return "inputs.frozen: the input embeddings have no gradient and no tied head, so they stay as they are"

    def embeddings(
        self, model: PreTrainedModel, ids_BT: Tensor, *, guess_M: Tensor, place_M: Tensor, mix: float
    ) -> Tensor:
        """[B, T, D]. place_M: of the guesses among the B * T positions."""
        embed = embedding_of(model)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            true_BTD = embed(ids_BT)
            if not mix:
                return true_BTD
            true_PD = true_BTD.flatten(0, 1)
            mixed_MD = (1 - mix) * true_PD[place_M] + mix * embed(guess_M[None])[0]
            return true_PD.index_copy(0, place_M, mixed_MD.to(true_PD.dtype)).view_as(true_BTD)


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """The module, called as the model calls it: some scale in it (Gemma 3), others after it (Gemma, Granite)."""
    return model.get_input_embeddings()  # type: ignore[return-value]


def guesses(hidden_MD: Tensor, project: Callable[[Tensor], Tensor], *, chunk_tokens: int) -> Tensor:
    """[M] the most probable next token after each hidden state; `chunk_tokens` rows of logits at a time."""
    chunks = range(
        0, max(1, len(hidden_MD)), chunk_tokens
    )  # one even without a token: sharded ranks gather weights together
    return torch.cat([project(hidden_MD[start : start + chunk_tokens]).argmax(-1) for start in chunks])
