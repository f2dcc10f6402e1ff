"""The library's fused loss: equal to ours in value and gradient, for every objective that it is used for, and for no other.

It is used on a GPU alone (tests/test_cuda.py); here the same functions of torch are tried on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cft.models import fused_head
from cft.models.fused_head import fused_log_probs, has_fused_head
from cft.models.head import project
from cft.models.log_probs import log_probs
from cft.training.selective_lm import SelectiveLM
from tests.fakes import exact_llama, random_llama
from tests.methods import OPTIONS, VOCABULARY, batch_of, objective, token_rows
from tests.precision import assert_as_exact_as_torch, assert_same

pytestmark = pytest.mark.numerics
needs_fused = pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no fused loss in chunks"
)
WEIGHTINGS = (
    *("beyond_log", "excess_loss", "focal", "iw_sft", "probability", "profit", "propagation", "sstoken"),
    *("thresholded", "uniform"),
)
LOSSES = ("nll", "power", "psft", "sft_go", "shad", "f_divergence")
OF_LOG_PROB = (*(f"weighting={w}" for w in WEIGHTINGS), *(f"loss={f}" for f in LOSSES))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The fused loss is allowed on the CPU; how many tokens each call had."""
    calls: list[int] = []
    fused = fused_head._fused

    def counted(hidden_ND: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(hidden_ND))
        return fused(hidden_ND, *args, **kwargs)

    monkeypatch.setattr(fused_head, "DEVICES", ("cpu",))
    fused_head._right.cache_clear()
    fused_head._right(torch.device("cpu"))
    monkeypatch.setattr(fused_head, "_fused", counted)
    yield calls
    fused_head._right.cache_clear()


def test_objectives_of_log_p_alone() -> None:
    """Whoever adds a loss or weighting that looks at more must not find it here."""
    assert {option for option in OPTIONS if objective(option).log_prob_alone} == {*OF_LOG_PROB}


def step(lm: SelectiveLM, batch: Any) -> tuple[Tensor, ...]:
    lm.zero_grad()
    loss = torch.stack([term.mean(batch.step_counts) for term in lm(batch)]).sum()
    loss.backward()
    return loss.detach(), *(p.grad.clone() for p in lm.parameters() if p.grad is not None)


@needs_fused
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("method", OF_LOG_PROB)
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_is_the_same(on_cpu: list[int], method: str, tied: bool) -> None:
    model, batch = exact_llama(vocab=VOCABULARY, spread=1.0, tie_word_embeddings=tied), batch_of(token_rows())
    ours, fused = (
        SelectiveLM(copy.deepcopy(model), objective(method, chunk_tokens=4), layout="packed", fused_loss=on)
        for on in (False, True)
    )
    expected = step(ours, batch)
    assert not on_cpu
    found = step(fused, batch)
    assert on_cpu == [len(objective(method).tokens(batch).target_N)]
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    with torch.inference_mode():
        assert_same(fused(batch)[0].sum, ours(batch)[0].sum)


@needs_fused
def test_float32_is_as_exact_as_ours(on_cpu: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    model = random_llama(vocab=VOCABULARY, tie_word_embeddings=False)
    hidden_ND = torch.randn(37, model.config.hidden_size, generator=generator, dtype=torch.float64)
    target_N = torch.randint(0, VOCABULARY, (37,), generator=generator)
    weight_N = torch.randn(37, generator=generator, dtype=torch.float64)

    def measured(dtype: torch.dtype, *, fused: bool) -> tuple[Tensor, ...]:
        lm: Any = copy.deepcopy(model)
        lm, x_ND = lm.to(dtype), hidden_ND.to(dtype, copy=True).requires_grad_()
        if fused:
            assert has_fused_head(lm, x_ND)
            logprob_N = fused_log_probs(lm, x_ND, target_N, chunk_tokens=8)
        else:
            logprob_N = log_probs(project(lm, x_ND)).gather(1, target_N[:, None])[:, 0]
        head: Any = lm.get_output_embeddings()
        of_x, of_head = torch.autograd.grad((logprob_N.exp() * weight_N.to(dtype)).sum(), (x_ND, head.weight))
        return logprob_N.detach(), of_x, of_head

    exact = measured(torch.float64, fused=False)
    assert_as_exact_as_torch(measured(torch.float32, fused=True), measured(torch.float32, fused=False), exact)


def test_a_cpu_keeps_its_own_kernels() -> None:
    model = random_llama()
    assert not has_fused_head(model, torch.zeros(3, model.config.hidden_size))


@needs_fused
@pytest.mark.usefixtures("on_cpu")
def test_what_the_library_would_round_or_leave_out_is_not_given_to_it() -> None:
    model = random_llama()
    states = torch.zeros(3, model.config.hidden_size)
    assert has_fused_head(model, states)
    assert not has_fused_head(model, states[:0])
    assert not has_fused_head(model, states.bfloat16())
    assert not has_fused_head(copy.deepcopy(model).bfloat16(), states.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not has_fused_head(model, states)
    for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"):
        other = copy.deepcopy(model)
        setattr(other.config, name, 2.0)
        assert not has_fused_head(other, states)


@needs_fused
@pytest.mark.usefixtures("on_cpu")
def test_half_precision_would_lose_digits() -> None:
    """Why it is left out: log p comes back in the precision of the states."""
    states, head = torch.zeros(3, 8, dtype=torch.bfloat16), torch.zeros(5, 8, dtype=torch.bfloat16)
    found_N = fused_head._fused(states, head, torch.arange(3), None, chunk_tokens=2)
    assert found_N.dtype == torch.bfloat16


@needs_fused
def test_a_library_that_forgets_the_weights_of_tokens_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Liger's did: every token's gradient times that of the first."""

    class First(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, losses_N: Tensor) -> Tensor:
            return losses_N.clone()

        @staticmethod
        def backward(ctx: Any, gradient_N: Tensor) -> Tensor:  # type: ignore[override]
            return gradient_N[:1].expand_as(gradient_N)

    right = functional.linear_cross_entropy

    def wrong(*args: Any, **kwargs: Any) -> Tensor:
        return First.apply(right(*args, **kwargs))

    monkeypatch.setattr(fused_head, "DEVICES", ("cpu",))
    model = random_llama()
    states = torch.zeros(3, model.config.hidden_size)
    fused_head._right.cache_clear()
    assert has_fused_head(model, states)
    for broken in (wrong, None):
        with monkeypatch.context() as patch:
            fused_head._right.cache_clear()
            if broken is None:
                patch.delattr(torch.nn, "LinearCrossEntropyOptions")  # torch 2.11
            else:
                patch.setattr(functional, "linear_cross_entropy", broken)
            assert not has_fused_head(model, states)
    fused_head._right.cache_clear()


@needs_fused
def test_it_is_used_for_log_p_alone(on_cpu: list[int]) -> None:
    batch = batch_of(token_rows())
    for method in ("weighting=high_entropy", "loss=gem", "regularizer=entropy_bonus"):
        assert not objective(method).log_prob_alone
        SelectiveLM(random_llama(vocab=VOCABULARY), objective(method), fused_loss=True)(batch)
    assert not on_cpu
