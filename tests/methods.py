"""Every method of conf/weighting, conf/loss and conf/regularizer as an objective, and tokens to test it on.

A method is named as on the command line, followed by overrides if the test needs other settings:
"weighting=focal weighting.detached=true". A regularizer is added to the plain loss under the name `extra`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import Tensor

from cft.config.build import CONF_DIR, build
from cft.data.batches import TokenRow, collate
from cft.losses.normalizer import TermSum
from cft.losses.objective import Objective
from cft.types import StepCounts, TokenBatch
from tests.objectives import on_logits

VOCABULARY = 25
GROUPS = ("weighting", "loss", "regularizer")
OF_GROUPS = ("loss=cdpo", "loss=discriminative", "loss=discriminative_mean", "loss=dpo")  # tests/group_rows.py
OPTIONS = tuple(
    name
    for group in GROUPS
    for file in sorted((CONF_DIR / group).glob("*.yaml"))
    if (name := f"{group}={file.stem}") not in OF_GROUPS
)


def objective(method: str, *, chunk_tokens: int = 1024) -> Objective:
    """The objective that `cft train` would build; thresholds that would be calibrated are 0.6."""
    weighting, loss = _composed(method)
    built = build(loss | {"chunk_tokens": chunk_tokens})(build(weighting))
    assert isinstance(built, Objective)
    for term in built.regularizers.values():
        if getattr(term.token_loss, "tau", 0) == "calibrated":
            setattr(term.token_loss, "tau", 0.6)  # noqa: B010  (of one class among several)
    return built


@cache
def _composed(method: str) -> tuple[Any, Any]:
    option, *overrides = method.split()
    option = option.replace("regularizer=", "+regularizer@loss.regularizers.extra=")
    # Only the two groups are composed: all of conf/train.yaml takes five times as long.
    ConfigStore.instance().store("method", {"defaults": [{"weighting": "uniform"}, {"loss": "nll"}]})
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("method", [option, *overrides])
    return OmegaConf.to_container(cfg.weighting, resolve=True), OmegaConf.to_container(cfg.loss, resolve=True)


def token_rows(*, seed: int = 0) -> list[TokenRow]:
    """Uneven rows; the third has no eligible token, the fourth only group 1. All numbers are exact in float32."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, (prompt_len, response_len) in enumerate(((2, 7), (3, 5), (1, 4), (2, 9))):
        length = prompt_len + response_len
        response = np.arange(length) >= prompt_len
        weight = np.where(response, rng.choice([0.0, 0.5, 1.0, 1.0, 2.0], length), 0.0)
        weight[-2:] = 1.0
        probe = np.where(response, rng.integers(0, 2, length), -1)
        scores = {
            "reference_logprob": -rng.integers(1, 30, length) / 8,
            "attention_to_prompt": rng.permutation(length) / 64,
            "group": rng.integers(0, 2, length) if i != 3 else np.ones(length),
        }
        rows.append(
            TokenRow(
                f"r{i}",
                rng.integers(0, VOCABULARY, length),
                (weight * (i != 2)).astype(np.float32),
                probe.astype(np.int8),
                {name: (x * response).astype(np.float32) for name, x in scores.items()},
            )
        )
    return rows


def batch_of(rows: list[TokenRow]) -> TokenBatch:
    return collate(rows, step_counts=sum((row.counts() for row in rows), StepCounts()))


def random_logits(rows: list[TokenRow], *, seed: int, spread: float = 2.0) -> list[Tensor]:
    """[L, V] float64 for each row; at every second token, the target's logit is raised, so that some are confident."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for row in rows:
        logits = spread * torch.randn(len(row.ids), VOCABULARY, dtype=torch.float64, generator=generator)
        at = torch.arange(0, len(row.ids) - 1, 2)
        logits[at, torch.from_numpy(row.ids[1:])[at]] += 4.0
        made.append(logits)
    return made


def padded(rows_LV: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows_LV, batch_first=True)


def terms_of(
    method: Objective, rows: list[TokenRow], logits: list[Tensor], reference: list[Tensor], *, progress: float = 0.0
) -> tuple[TermSum, ...]:
    """The sums over one batch of these rows.

    If the method needs the reference's distribution, its log-probs come from it, otherwise from the stored column.
    """
    live = padded(reference) if "reference_distribution" in method.needs else None
    return on_logits(method, batch_of(rows), padded(logits), reference_BTV=live, progress=progress)


def step_loss(terms: tuple[TermSum, ...], counts: StepCounts) -> Tensor:
    return torch.stack([term.mean(counts) for term in terms]).sum()
