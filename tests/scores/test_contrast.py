"""The contrast of two models is the formula of cDPO's official code, token by token."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import ConfigError
from cft.config.needs import missing_scores
from cft.scores.contrast import Contrast
from cft.scores.store import command_for, other_kind
from tests.precision import STORED


@pytest.mark.usefixtures("in_float64")
def test_values_are_the_formula_of_every_token(tiny_arith_path: str) -> None:
    """Rows of other lengths beside it; the two models without padding, on all of their logits."""
    negative = AutoModelForCausalLM.from_pretrained(tiny_arith_path).double().eval()
    positive = copy.deepcopy(negative)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in positive.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    rows = AnnotationStore(SHIPPED / "tiny_arith").rows()[:3]
    found = Contrast(negative=tiny_arith_path, strength=1.0)(positive, rows)
    for row, values in zip(rows, found, strict=True):
        ids = torch.tensor([[*row.prompt_ids.tolist(), *row.response_ids.tolist()]])
        start = len(row.prompt_ids) - 1
        with torch.no_grad():
            right, wrong = (model(ids).logits[0, start:-1] for model in (positive, negative))
        expected = (2 * right - wrong).softmax(-1).gather(1, ids[0, start + 1 :, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(values).double(), expected, rtol=0, atol=STORED)
        assert 0 <= values.min() < 0.5 < values.max() <= 1


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"score\.negative="):
        Contrast(negative=str(tmp_path), strength=1.0)


def test_the_command_names_both_models() -> None:
    assert command_for("contrast", "mine", model="").endswith(
        "score=contrast name=contrast checkpoint=RUN_FOLDER score.negative=OTHER_RUN_FOLDER"
    )


def test_log_probs_are_no_contrast(tmp_path: Path) -> None:
    """They are below 0, and a token would count more than once."""
    manifest = {"fingerprint": {"score": {"kind": "reference_logprob"}}}
    text = other_kind(manifest, name="other", kind="contrast", annotation="mine", model="")
    assert "contrast is needed here" in text
    loss = {"aggregation": {"_target_": "cft.losses.CriticalDPO", "contrast": "other"}}
    folder = tmp_path / "tiny_arith" / "scores" / "other"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"fingerprint": {"score": {"kind": "reference_logprob"}}}')
    data = {"_target_": "cft.data.annotated.annotated_rows", "annotation": "tiny_arith"}
    ((key, found),) = missing_scores({"data": data, "loss": loss, "annotations_dir": str(tmp_path)})
    assert key == "data.annotation"
    assert "but contrast is needed here" in found
