"""The wrapper around a model: only eligible positions reach the head, and its logits are those of the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from cft.errors import BadValue
from cft.models.load import Lora, apply_lora
from cft.training.selective_lm import SelectiveLM
from tests.architectures import gradients, model_of, uneven
from tests.fakes import exact_llama
from tests.objectives import sft
from tests.precision import assert_same

pytestmark = [pytest.mark.numerics, pytest.mark.usefixtures("in_float64")]


def naive(model: PreTrainedModel) -> Tensor:
    """The sum over eligible tokens, from the model's own logits over whole padded rows."""
    batch = uneven()
    position_T = torch.arange(batch.input_ids_BT.shape[1])
    mask_BT = (position_T < batch.lengths_B[:, None]).long()
    logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=mask_BT, use_cache=False).logits
    nll_BT = cross_entropy(logits_BTV[:, :-1].transpose(1, 2), batch.input_ids_BT[:, 1:], reduction="none")
    return nll_BT[batch.weight_BT[:, 1:] > 0].sum()


SCALED: dict[str, dict[str, Any]] = {
    "llama": {},
    "granite": {"logits_scaling": 4.0},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 64, "attention": "eager"},
    "cohere": {"logit_scale": 0.3},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", SCALED)
def test_value_and_gradient_are_those_of_the_models_own_logits(kind: str, tied: bool) -> None:
    """Scaled and capped logits included; a head that shares its weights with the embedding gets both gradients."""
    model = model_of(kind, **SCALED[kind], tie_word_embeddings=tied).double().train()
    lm = SelectiveLM(model, sft(chunk_tokens=7), layout="packed")
    lm.check_head()
    (term,) = lm(uneven())
    term.sum.backward()
    ours = gradients(model)
    theirs = naive(model)
    theirs.backward()
    assert_same(term.sum.item(), theirs.item())
    assert_same(ours, gradients(model))


def test_a_logit_transform_of_a_models_own_is_refused() -> None:
    def doubled(_module: Any, _inputs: Any, output: Any) -> Any:
        output.logits = 2 * output.logits
        return output

    model = exact_llama()
    model.register_forward_hook(doubled)
    with pytest.raises(BadValue, match=r"LlamaForCausalLM: its logits differ by .* cft/models/head.py"):
        SelectiveLM(model, sft()).check_head()


def test_adapters_on_the_head_are_part_of_the_projection() -> None:
    model = exact_llama(tie_word_embeddings=False)
    apply_lora(model, lora=Lora(r=2, target_modules=["q_proj", "lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, so that an adapter left out would not show
                parameter.normal_(std=0.2)
    lm = SelectiveLM(model, sft(), layout="packed")
    lm.check_head()
    (term,) = lm(uneven())
    term.sum.backward()
    trained = [p for name, p in model.named_parameters() if "lm_head.lora_" in name]
    assert trained
    ours = [p.grad.clone() for p in trained if p.grad is not None]
    model.zero_grad()
    theirs = naive(model)
    theirs.backward()
    assert_same(term.sum.item(), theirs.item())
    for mine, parameter in zip(ours, trained, strict=True):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
        assert_same(mine, parameter.grad)


@pytest.mark.parametrize("chunk_tokens", [3, 1024])
def test_only_eligible_positions_reach_the_head(chunk_tokens: int) -> None:
    model, batch, seen = exact_llama(tie_word_embeddings=False), uneven(), []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    (term,) = SelectiveLM(model, sft(chunk_tokens=chunk_tokens), layout="packed")(batch)
    eligible = int((batch.weight_BT[:, 1:] > 0).sum())
    assert sum(seen) == eligible == term.count
    assert max(seen) <= chunk_tokens
    assert eligible < batch.input_ids_BT.numel() / 2
