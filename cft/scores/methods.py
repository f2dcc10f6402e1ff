"""Kinds of score: what a frozen model says of each response token, from one teacher-forced pass over padded rows.

One by a classifier of its own is in `classifier.py`.

    kind(model, rows) -> [[R] float32]          configured by conf/score, run by `cft score`

The values of a row do not depend on the rows beside it. To add a kind, write a class with `eager`, `fingerprint` and
`__call__`, and a yaml in conf/score/ that names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cft.errors import BadValue
from cft.models.head import backbone, project
from cft.models.log_probs import log_probs
from cft.ranges import AtLeastOne, in_range
from cft.scores.store import Values
from cft.types import AnnotatedResponse

CHUNK_TOKENS = 1024  # logits exist for so many tokens at a time


class ScoreKind(Protocol):
    """eager: whether the model must hand out its attention. fingerprint: the kind and its arguments. JSON."""

    eager: bool

    def fingerprint(self) -> dict[str, Any]: ...

    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]: ...


class OwnModel(ABC):
    """Base of a kind that asks a model of its own; `__call__` gets None in the place of the configured one."""

    eager = False

    @abstractmethod
    def on(self, device: str) -> torch.device:
        """Where it computes from now on. device: as `cft.models.device.place` has it."""


class ReferenceLogprob:
    """log p(y_t | x, y_<t), nats."""

    eager = False

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "reference_logprob", "version": 1}

    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]:
        return _of_distributions(model, rows, lambda logprob_NV, y_N: logprob_NV.gather(1, y_N[:, None])[:, 0])


class Entropy:
    """Entropy of the distribution that each response token was drawn from, nats: what engines that see only the most
    probable tokens leave open in an annotation."""

    eager = False

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "entropy", "version": 1}

    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]:
        return _of_distributions(model, rows, lambda logprob_NV, _: torch.special.entr(logprob_NV.exp()).sum(-1))


@torch.no_grad()
def _of_distributions(
    model: PreTrainedModel, rows: Sequence[AnnotatedResponse], value: Callable[[Tensor, Tensor], Tensor]
) -> list[Values]:
    """value(log-probs [N, V], the tokens [N] that came next) -> [N], of every response token."""
    found = []
    for hidden_RD, y_R in predicting_states(model, rows):
        chunks = zip(hidden_RD.split(CHUNK_TOKENS), y_R.split(CHUNK_TOKENS), strict=True)
        found.append(torch.cat([value(log_probs(project(model, h_ND)), y_N) for h_ND, y_N in chunks]))
    return [_array(values_R) for values_R in found]


def predicting_states(model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[tuple[Tensor, Tensor]]:
    """(hidden states [R, D] that predict the tokens of the response, these tokens [R]) of each row."""
    ids_BT, attention_BT = _padded(model, rows)
    hidden_BTD = backbone(model)(ids_BT, attention_mask=attention_BT, use_cache=False).last_hidden_state
    ends = [(len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)) for row in rows]
    # The state before a token predicts it.
    return [(hidden_BTD[b, start - 1 : end - 1], ids_BT[b, start:end]) for b, (start, end) in enumerate(ends)]


class _Attention(ABC):
    """What a score of attention weights is made from. Subclasses say what is read from a row's weights.

    Args:
        layers: how many of the last layers, at least 1.
    """

    eager = True
    kind: ClassVar[str]

    @in_range
    def __init__(self, *, layers: AtLeastOne) -> None:
        self.layers = layers

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": 1, "layers": self.layers}

    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]:
        found = zip(rows, _attention(model, rows, layers=self.layers), strict=True)
        return [_array(self.values(attention_LL, len(row.prompt_ids))) for row, attention_LL in found]

    @abstractmethod
    def values(self, attention_LL: Tensor, start: int) -> Tensor:
        """[R] of a row whose response begins at `start`."""


class AttentionReceived(_Attention):
    """Mean attention that a response token receives from the later tokens of its response; 0 for the last token.

    The mean runs over heads and layers, and over the later tokens, so that early tokens do not win by number. It is our
    reconstruction of the attention baseline: its source does not say which layers, heads or sum it takes.

    Args:
        layers: how many of the last layers, at least 1.
    """

    kind = "attention_received"

    def values(self, attention_LL: Tensor, start: int) -> Tensor:
        later_RR = attention_LL[start:, start:].tril(-1)
        later_R = torch.arange(len(later_RR) - 1, -1, -1, device=later_RR.device)
        return later_RR.sum(0) / later_R.clamp(min=1)


class AttentionToPrompt(_Attention):
    """Attention that a response token pays to its prompt, summed over the prompt's tokens (ssToken, arXiv 2510.18250).

    Mean over heads and layers; the query is the token itself. 0-1.

    Args:
        layers: how many of the last layers, at least 1.
    """

    kind = "attention_to_prompt"

    def values(self, attention_LL: Tensor, start: int) -> Tensor:
        return attention_LL[start:, :start].sum(1)


@torch.no_grad()
def _attention(model: PreTrainedModel, rows: Sequence[AnnotatedResponse], *, layers: int) -> list[Tensor]:
    """[L, L] of each row without its padding: what query i pays to key j, mean over heads and the last layers."""
    ids_BT, attention_BT = _padded(model, rows)
    outputs = backbone(model)(ids_BT, attention_mask=attention_BT, use_cache=False, output_attentions=True)
    found = [layer for layer in outputs.attentions or () if layer is not None]
    if layers > len(found):
        raise BadValue(
            f"score.layers={layers}: the model gives the attention of {len(found)} layers; expected at most that many, and "
            "a model with eager attention"
        )
    mean_BTT = torch.stack([layer.float().mean(1) for layer in found[-layers:]]).mean(0)
    lengths = attention_BT.sum(1).tolist()
    return [mean_BTT[b, :length, :length] for b, length in enumerate(lengths)]


def _padded(model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), [B, T] on the model's device, padded on the right, which a causal model never looks at."""
    width = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    attention_BT = np.zeros((len(rows), width), dtype=np.int64)
    for b, row in enumerate(rows):
        ids = np.concatenate([row.prompt_ids, row.response_ids])
        ids_BT[b, : len(ids)], attention_BT[b, : len(ids)] = ids, 1
    return torch.from_numpy(ids_BT).to(model.device), torch.from_numpy(attention_BT).to(model.device)


def _array(values_R: Tensor) -> Values:
    return values_R.float().cpu().numpy()
