"""The loss that balances a mixture's experts: transformers' own of a single row, a sum over rows, asked for or named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from cft.errors import BadValue
from cft.losses.router import balance_of_rows
from cft.models.experts import experts_of, router_coefficient, router_note
from cft.training.selective_lm import SelectiveLM
from tests.architectures import exact_family, family, gradients, uneven
from tests.objectives import sft
from tests.precision import assert_same


def test_of_one_row_it_is_the_loss_of_transformers() -> None:
    torch.manual_seed(0)
    # Probabilities and numbers of positions are powers of two: the sums that transformers makes in float32 are exact.
    log_p = -torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 7], dtype=torch.float64) * math.log(2)
    layers: Any = tuple(torch.stack([log_p[torch.randperm(8)] for _ in range(16)]) for _ in range(4))
    (ours,) = balance_of_rows(layers, torch.zeros(16, dtype=torch.long), num_rows=1, chosen=2)
    assert float(ours) == pytest.approx(float(load_balancing_loss_func(layers, 8, 2)), rel=1e-12)
    # With padding, which counts nowhere.
    row_P = torch.where(torch.arange(16) < 8, 0, -1)
    masked = load_balancing_loss_func(layers, 8, 2, (row_P >= 0).long()[None])
    (ours,) = balance_of_rows(layers, row_P, num_rows=1, chosen=2)
    assert float(ours) == pytest.approx(float(masked), rel=1e-12)


def test_it_is_least_where_experts_are_used_alike() -> None:
    even = torch.eye(4).repeat(3, 1) * 50
    alike, one = (
        float(balance_of_rows([logits], torch.zeros(12, dtype=torch.long), num_rows=1, chosen=1)[0])
        for logits in (even, even[:1].expand(12, 4))
    )
    assert alike == pytest.approx(1.0)
    assert one == pytest.approx(4.0)


def row_by_row(model: Any, *, coefficient: float) -> Tensor:
    """What is optimized, from the model's own outputs for each row alone, up to its last wanted token."""
    batch, total = uneven(), torch.zeros((), dtype=torch.float64)
    tokens = rows = 0
    balance = torch.zeros((), dtype=torch.float64)
    for b in range(len(batch.lengths_B)):
        wanted = (batch.weight_BT[b] > 0).nonzero()[:, 0]
        if not len(wanted):
            continue
        ids = batch.input_ids_BT[b : b + 1, : int(wanted[-1])]
        output = model(input_ids=ids, use_cache=False, output_router_logits=True)
        logprob = output.logits[0].log_softmax(-1)
        total = total - logprob[wanted - 1, batch.input_ids_BT[b, wanted]].sum()
        probability = torch.stack([logits.softmax(-1) for logits in output.router_logits])
        sent = torch.zeros_like(probability).scatter(-1, probability.topk(2, dim=-1).indices, 1.0)
        balance = balance + 4 * (sent.flatten(0, 1).mean(0) * probability.flatten(0, 1).mean(0)).sum()
        tokens, rows = tokens + len(wanted), rows + 1
    return total / tokens + coefficient * balance / rows


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.usefixtures("in_float64")
def test_value_and_gradient_are_those_of_each_row_by_itself(checkpointing: bool) -> None:
    found = {}
    for layout in ("padded", "packed"):
        model = exact_family("qwen3-moe").train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm = SelectiveLM(model, sft(), layout=layout, router=0.7)  # type: ignore[arg-type]
        lm.check_router()
        batch = uneven()
        terms = lm(batch)
        assert (lm.names, lm.divisors, lm.coefficients(0.0)) == (
            ("loss", "router"),
            ("eligible", "sequence"),
            (1.0, 0.7),
        )
        assert [term.count for term in terms] == [getattr(batch.step_counts, divisor) for divisor in lm.divisors]
        loss = torch.stack([term.mean(batch.step_counts) for term in terms]).sum()
        loss.backward()
        found[layout] = loss.item(), gradients(model)
    model = exact_family("qwen3-moe").train()
    loss = row_by_row(model, coefficient=0.7)
    loss.backward()
    expected = gradients(model)
    for value, gradient in found.values():
        assert_same(value, loss.item())
        assert_same(gradient, expected)


def test_it_is_never_left_out_in_silence() -> None:
    """Without a word of the user's the config decides, and what it decides is said."""
    silent, spoken = family("qwen3-moe"), family("qwen3-moe", output_router_logits=True)
    assert router_coefficient(silent.config, asked=None) == 0.0
    assert "output_router_logits=false; router.aux_coef=0.001 adds it" in router_note(silent.config, asked=None)
    assert router_coefficient(spoken.config, asked=None) == 0.001
    assert "load-balancing loss with coefficient 0.001" in router_note(spoken.config, asked=None)
    assert router_coefficient(spoken.config, asked=0.0) == 0.0
    assert "no load-balancing loss (router.aux_coef=0)" in router_note(spoken.config, asked=0.0)
    assert router_coefficient(silent.config, asked=0.02) == 0.02


def test_what_has_no_router_is_refused() -> None:
    dense = family("qwen3")
    assert experts_of(dense.config) is None
    assert router_note(dense.config, asked=None) == ""
    with pytest.raises(BadValue, match=r"router\.aux_coef=0\.1: Qwen3ForCausalLM .* has no experts"):
        router_coefficient(dense.config, asked=0.1)
    model = family("qwen3-moe")
    lm = SelectiveLM(model, sft(), router=0.1)

    def without(_module: Any, _inputs: Any, output: Any) -> Any:
        output.router_logits = None
        return output

    model.model.register_forward_hook(without)
    with pytest.raises(
        BadValue, match=r"router\.aux_coef=0\.1: .*does not return its router logits.*router\.aux_coef=0 trains"
    ):
        lm.check_router()
