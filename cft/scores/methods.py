"""Kinds of score: one number per response token from a frozen model, computed by a teacher-forced pass over padded rows.

The score of a separate token classifier is in `classifier.py`.

    kind(model, rows) -> [[R] float32]          configured by conf/score, run by `cft score`

The values of a row do not depend on the other rows of the batch. To add a kind, write a class with `eager`, `fingerprint` and
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

CHUNK_TOKENS = 1024  # number of tokens whose logits are in memory at a time


class ScoreKind(Protocol):
    """A kind of score. eager: whether the model must return its attention weights. fingerprint: kind and arguments, JSON."""

    eager: bool

    def fingerprint(self) -> dict[str, Any]: ...

    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]: ...


class OwnModel(ABC):
    """Base of kinds with a model of their own; `__call__` gets None instead of the configured model."""

    eager = False

    @abstractmethod
    def on(self, device: str) -> torch.device:
        """Move the model to a device and return it. device: as in `cft.models.device.place`."""


class ReferenceLogprob:
    """log p(y_t | x, y_<t), nats."""

    eager = False

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "reference_logprob", "version": 1}

    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]:
        return _of_distributions(model, rows, lambda logprob_NV, y_N: logprob_NV.gather(1, y_N[:, None])[:, 0])


class Entropy:
    """Entropy of the next-token distribution at each response token, nats. For annotations of engines that return only the most
    probable tokens, which contain no entropies."""

    eager = False

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "entropy", "version": 1}

    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]:
        return _of_distributions(model, rows, lambda logprob_NV, _: torch.special.entr(logprob_NV.exp()).sum(-1))


@torch.no_grad()
def _of_distributions(
    model: PreTrainedModel, rows: Sequence[AnnotatedResponse], value: Callable[[Tensor, Tensor], Tensor]
) -> list[Values]:
    """Apply `value`, a function of log-probs [N, V] and next tokens [N] that returns [N], to all response tokens."""
    found = []
    for hidden_RD, y_R in predicting_states(model, rows):
        chunks = zip(hidden_RD.split(CHUNK_TOKENS), y_R.split(CHUNK_TOKENS), strict=True)
        found.append(torch.cat([value(log_probs(project(model, h_ND)), y_N) for h_ND, y_N in chunks]))
    return [_array(values_R) for values_R in found]


def predicting_states(model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[tuple[Tensor, Tensor]]:
    """For each row, the hidden states [R, D] that predict the response tokens, and these tokens [R]."""
    ids_BT, attention_BT = _padded(model, rows)
    hidden_BTD = backbone(model)(ids_BT, attention_mask=attention_BT, use_cache=False).last_hidden_state
    ends = [(len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)) for row in rows]
    # The state before a token predicts it.
    return [(hidden_BTD[b, start - 1 : end - 1], ids_BT[b, start:end]) for b, (start, end) in enumerate(ends)]


class _Attention(ABC):
    """Base of scores from attention weights. Subclasses implement `values`.

    Args:
        layers: Number of last layers to average over, at least 1.
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
        """Scores [R] of a row whose response begins at `start`, from its attention weights."""


class AttentionReceived(_Attention):
    """Mean attention that a response token receives from the later tokens of its response; 0 for the last token.

    The mean is over heads, layers and later tokens, so that early tokens have no advantage by number. It is a reconstruction of
    the attention baseline, whose source does not specify layers, heads or aggregation.

    Args:
        layers: Number of last layers to average over, at least 1.
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
        layers: Number of last layers to average over, at least 1.
    """

    kind = "attention_to_prompt"

    def values(self, attention_LL: Tensor, start: int) -> Tensor:
        return attention_LL[start:, :start].sum(1)


@torch.no_grad()
def _attention(model: PreTrainedModel, rows: Sequence[AnnotatedResponse], *, layers: int) -> list[Tensor]:
    """Attention weights [L, L] of each row without padding: from query i to key j, mean over heads and the last layers."""
    ids_BT, attention_BT = _padded(model, rows)
    outputs = backbone(model)(ids_BT, attention_mask=attention_BT, use_cache=False, output_attentions=True)
    found = [layer for layer in outputs.attentions or () if layer is not None]
    if layers > len(found):
        raise BadValue(
            f"score.layers={layers}: the model returns the attention of {len(found)} layers; expected at most that many, and "
            "a model with eager attention"
        )
    mean_BTT = torch.stack([layer.float().mean(1) for layer in found[-layers:]]).mean(0)
    lengths = attention_BT.sum(1).tolist()
    return [mean_BTT[b, :length, :length] for b, length in enumerate(lengths)]


def _padded(model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [B, T] on the model's device, padded on the right, where a causal model does not attend to it."""
    width = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    attention_BT = np.zeros((len(rows), width), dtype=np.int64)
    for b, row in enumerate(rows):
        ids = np.concatenate([row.prompt_ids, row.response_ids])
        ids_BT[b, : len(ids)], attention_BT[b, : len(ids)] = ids, 1
    return torch.from_numpy(ids_BT).to(model.device), torch.from_numpy(attention_BT).to(model.device)


def _array(values_R: Tensor) -> Values:
    return values_R.float().cpu().numpy()
