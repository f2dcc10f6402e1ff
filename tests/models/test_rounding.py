"""What the checks of a model leave to rounding: of its own dtype and products, not a constant of one processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cft.errors import BadValue
from cft.models.rounding import half_of_the_digits
from cft.training.selective_lm import SelectiveLM
from tests.fakes import random_llama
from tests.objectives import sft


def test_it_lies_between_rounding_and_another_formula() -> None:
    found = {dtype: half_of_the_digits(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    assert found == pytest.approx({torch.float32: 3.45e-4, torch.float16: 0.031, torch.bfloat16: 0.088}, rel=0.02)
    assert half_of_the_digits(torch.float64) == half_of_the_digits(torch.float32)  # norms are of float32 anyway


@pytest.mark.parametrize(("products", "refused"), [("highest", True), ("high", False), ("medium", False)])
def test_coarse_products_are_no_reason_to_refuse_a_model(
    products: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of 1e-3, as products of TensorFloat-32 have them and those of float32 do not."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: products)
    model = random_llama()
    torch.manual_seed(0)

    def noisy(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state *= 1 + 1e-3 * torch.randn_like(output.last_hidden_state)
        return output

    model.base_model.register_forward_hook(noisy)
    checked = SelectiveLM(model, sft())
    for check in (checked.check_layout, checked.check_head):
        if refused:
            with pytest.raises(BadValue, match="differ by"):
                check()
        else:
            check()


@pytest.mark.parametrize("factor", [2.0, float("nan")])
def test_small_or_broken_logits_do_not_pass_for_rounding(factor: float) -> None:
    """The bound is a share of the logits, however small they are; NaN is in no bound."""

    def scaled(_module: Any, _inputs: Any, output: Any) -> Any:
        output.logits = factor * output.logits
        return output

    model = random_llama(spread=1e-5)
    model.register_forward_hook(scaled)
    with pytest.raises(BadValue, match="its logits differ by"):
        SelectiveLM(model, sft()).check_head()
