"""Packed rows and padded rows against each row alone, by architecture; what no term asks for is not computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cft.data.batches import collate
from cft.errors import BadValue
from cft.losses.eligible import eligible_tokens
from cft.training.layout import placed
from cft.training.selective_lm import SelectiveLM
from cft.types import StepCounts, TokenBatch
from tests.architectures import ARCHITECTURES, gradients, model_of, token_row, uneven
from tests.fakes import exact_llama
from tests.objectives import sft
from tests.precision import assert_same

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("in_float64")]


def states(lm: SelectiveLM, batch: TokenBatch) -> Tensor:
    return lm._hidden(lm._placed(batch, lm.objective.tokens(batch)))


def alone(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The same states, a row at a time, whole."""
    found = []
    for b, length in enumerate(batch.lengths_B.tolist()):
        hidden = model.base_model(input_ids=batch.input_ids_BT[b : b + 1, :length], use_cache=False).last_hidden_state
        found.append(hidden[0, (batch.weight_BT[b, 1:length] > 0).nonzero()[:, 0]])
    return torch.cat(found)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_no_row_sees_another(kind: str) -> None:
    """Changing the tokens of one row changes no bit of the others, and each is what it is alone."""
    model, batch = model_of(kind).double(), uneven()
    expected = alone(model, batch)
    for layout in ("padded", "packed"):
        lm = SelectiveLM(model, sft(), layout=layout)
        lm.check_layout()
        ours = states(lm, batch)
        assert_same(ours, expected)
        changed = uneven()
        changed.input_ids_BT[1] = changed.input_ids_BT[1].flip(0)
        others = lm.objective.tokens(batch).row_N != 1
        assert float((states(lm, changed)[others] - ours[others]).abs().max()) == 0.0
        assert float((states(lm, changed)[~others] - ours[~others]).abs().max()) > 0.0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_value_and_gradient_are_those_of_padded_rows(checkpointing: bool) -> None:
    """Also when layers are computed again in the backward pass, after the forward pass is over."""
    batch, found = uneven(), {}
    for layout in ("padded", "packed"):
        model = exact_llama()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        (term,) = SelectiveLM(model.train(), sft(), layout=layout)(batch)
        term.sum.backward()
        found[layout] = term.sum.item(), gradients(model)
    for packed, padded in zip(found["packed"], found["padded"], strict=True):
        assert_same(packed, padded)


@torch.no_grad()
def test_attention_of_transformers_itself_packs_as_well() -> None:
    """Eager attention gets the block mask that transformers builds from the position ids."""
    model, batch = exact_llama(), uneven()
    expected = alone(model, batch)
    model.config._attn_implementation = "eager"
    lm = SelectiveLM(model, sft(), layout="packed")
    assert not lm._by_rows
    lm.check_layout()
    assert_same(states(lm, batch), expected)


@torch.no_grad()
def test_a_packing_model_still_answers_like_any_other() -> None:
    """Left padding with a mask, as `generate` uses it, must not be lost with the attention that packs."""
    model = exact_llama()
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    before = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    SelectiveLM(model, sft(), layout="packed")
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False), before)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_tokens_travel_with_their_rows(layout: str) -> None:
    """A backbone that returns the ids it was given: the state of each token is the id before it."""
    batch = uneven()
    tokens = eligible_tokens(batch, batch.weight_BT > 0)
    placement = placed(batch.input_ids_BT, tokens, layout=layout, by_rows=False)  # type: ignore[arg-type]
    found = placement.states(placement.inputs["input_ids"][..., None])[:, 0]
    assert torch.equal(found, batch.input_ids_BT[tokens.row_N, tokens.position_N - 1])


def computed(batch: TokenBatch, *, layout: str, wanted: Callable[[TokenBatch], Tensor]) -> tuple[int, ...]:
    tokens = eligible_tokens(batch, wanted(batch))
    return tuple(placed(batch.input_ids_BT, tokens, layout=layout, by_rows=True).inputs["input_ids"].shape)  # type: ignore[arg-type]


def test_nothing_is_computed_after_the_last_wanted_token() -> None:
    batch = uneven()
    last = [int(w.nonzero()[-1]) if (w > 0).any() else 0 for w in batch.weight_BT]  # token p needs p states
    assert computed(batch, layout="packed", wanted=lambda b: b.weight_BT > 0) == (1, sum(last))
    assert computed(batch, layout="padded", wanted=lambda b: b.weight_BT > 0) == (4, max(last))
    # A probe or a regularizer asks for all response tokens.
    whole = [length - 1 for length in batch.lengths_B.tolist()]
    assert computed(batch, layout="packed", wanted=lambda b: b.token_group_BT >= 0) == (1, sum(whole))
    # Nothing wanted: one position, so that all parameters take part.
    for layout in ("padded", "packed"):
        assert computed(batch, layout=layout, wanted=lambda b: b.weight_BT < 0) == (1, 1)


class Leaky(torch.nn.Module):
    """Attention that mixes in the mean of the whole sequence: what rows_attention cannot keep apart."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.inner(hidden_states) + hidden_states.mean(1, keepdim=True)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_model_whose_rows_see_each_other_is_refused(layout: str) -> None:
    model = exact_llama()
    model.model.layers[0].mlp = Leaky(model.model.layers[0].mlp)  # type: ignore[assignment]
    with pytest.raises(BadValue, match=rf"compute.layout={layout}.*LlamaForCausalLM"):
        SelectiveLM(model, sft(), layout=layout).check_layout()  # type: ignore[arg-type]


def test_one_row_and_no_rows() -> None:
    for rows in ([token_row(9, 3, density=1.0, seed=0)], []):
        batch = collate(rows, step_counts=sum((row.counts() for row in rows), StepCounts()))
        values = []
        for layout in ("padded", "packed"):
            (term,) = SelectiveLM(exact_llama(), sft(), layout=layout)(batch)  # type: ignore[arg-type]
            values.append(term.sum.item())
        assert_same(values[0] + 1.0, values[1] + 1.0)  # both may be 0
