"""Every method's gradient against its target distribution, written down here once more.

A loss whose gradient with respect to the logits is g trains toward Q = p - g. For each option of conf/weighting, conf/loss
and conf/regularizer the table below holds Q, or g where there is no Q, in numpy and float64, and the gradient that autograd
finds for the whole step's loss must equal it to 1e-9. Pure weightings have Q = w onehot + (1 - w) p. A new option needs one
entry here and nothing else: tests/data/test_limits.py and tests/training/test_method_training.py find it by its yaml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from cft.data.batches import TokenRow
from cft.losses.objective import Objective
from cft.types import StepCounts
from tests.closed_forms import TABLE, Array, Case, Known, sequence_ratio, ss_score
from tests.methods import OPTIONS, objective, random_logits, step_loss, terms_of, token_rows

pytestmark = pytest.mark.numerics

ATOL = 1e-9


ROWS = token_rows()
LOGITS = random_logits(ROWS, seed=1)
REFERENCE = random_logits(ROWS, seed=2)


def known(where: str) -> Known:
    columns: dict[str, list[Any]] = {name: [] for name in Known.__dataclass_fields__}
    for b, (row, z, z_ref) in enumerate(zip(ROWS, LOGITS, REFERENCE, strict=True)):
        p, r = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True) for x in (z, z_ref))
        for t in range(1, len(row.ids)):
            there = {
                "eligible": row.weight[t] > 0,
                "response": row.token_group[t] >= 0,
                "other": row.token_group[t] == 0,
            }
            if {**there, "critical": row.token_group[t] == 1}[where]:
                stored = row.scores
                values = (p[t - 1], r[t - 1], np.eye(p.shape[1])[row.ids[t]], row.weight[t], b, t)
                values += (stored["reference_logprob"][t], stored["attention_to_prompt"][t], stored["group"][t])
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    whole = ("row", "position")
    return Known(**{name: np.array(c, dtype=np.int64 if name in whole else float) for name, c in columns.items()})


def expected(case: Case) -> Array:
    """[N, V] of all tokens, as `gradient_of` gives it."""
    main = known("eligible")
    count = {"eligible": len(main.w), "response": len(known("response").w), "sequence": len(set(main.row.tolist()))}
    total = scattered(main, case.gradient(main) / count[case.count])
    for where, coefficient, gradient in case.further:
        own = known(where)
        total += scattered(own, coefficient * gradient(own) / len(own.w))
    return total


def scattered(k: Known, gradient: Array) -> Array:
    starts = np.cumsum([0, *(len(row.ids) for row in ROWS)])
    out = np.zeros((starts[-1], gradient.shape[1]))
    out[starts[k.row] + k.position - 1] = gradient
    return out


def gradient_of(method: Objective, rows: list[TokenRow] = ROWS, *, progress: float = 0.0) -> Array:
    """d loss of the step / d logits, all rows one after the other."""
    leaves: list[Tensor] = [z.clone().requires_grad_() for z in LOGITS]
    counts = sum((row.counts() for row in rows), StepCounts())
    step_loss(terms_of(method, rows, leaves, REFERENCE, progress=progress), counts).backward()
    return np.concatenate([leaf.grad.numpy() for leaf in leaves if leaf.grad is not None])


def test_no_option_is_missing_from_the_table() -> None:
    assert {name.split()[0] for name in TABLE} == set(OPTIONS)


@pytest.mark.parametrize("name", TABLE)
def test_the_gradient_is_p_minus_q(name: str) -> None:
    found = gradient_of(objective(name), progress=TABLE[name].progress)
    assert np.abs(found).max() > 1e-3  # a method that did nothing would agree with a table that says nothing
    np.testing.assert_allclose(found, expected(TABLE[name]), rtol=0, atol=ATOL)


def test_the_cases_off_the_defaults_are_where_the_settings_matter() -> None:
    """Some ratios, not all, meet the bound, and not those that would without the temperature; what is selected hangs on
    gain and attention, each with its own share."""
    k = known("eligible")
    bound, raw = (sequence_ratio(k, temperature=t, largest=0.7) == 0.7 for t in (0.5, 1.0))
    assert 0 < bound.sum() < len(bound)
    assert not raw.any()
    of_gain, of_attention = (ss_score(k, gamma=gamma) for gamma in (1.0, 0.0))
    shares = [(0.085, 0.915), (0.0, 1.0), (1.0, 0.0), (0.085, 0.5), (0.5, 0.915), (0.5, 0.5)]
    right, *others = (tuple(k.top(a * of_gain + b * of_attention, 0.6)) for a, b in shares)
    assert right not in others


# A product's factors say themselves whether they are detached: tests/weightings/test_weighting.py.
@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith("weighting=") and "product" not in name])
def test_detached_weights_and_others_are_told_apart(name: str) -> None:
    """Turned around, a smooth weight's gradient must leave the table; a flat one's has nowhere to go."""
    flipped = objective(name)
    flipped.weighting.detached = not flipped.weighting.detached
    agrees = np.abs(gradient_of(flipped) - expected(TABLE[name])).max() < ATOL
    assert agrees != TABLE[name].smooth
