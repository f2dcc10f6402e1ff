"""Contrastive score of cDPO: contrasts a model of right responses with a model of wrong responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from cft.errors import BadValue
from cft.models.head import project
from cft.models.lazy import LazyModel
from cft.models.load import ModelSpec, load_causal_lm, load_tokenizer
from cft.ranges import AtLeastZero, Name, in_range
from cft.runs.start import checkpoint_folder
from cft.scores.methods import CHUNK_TOKENS, predicting_states
from cft.scores.store import Values
from cft.types import AnnotatedResponse


class Contrast:
    """s_t = softmax((1 + strength) z+ - strength z-)(y_t), 0-1, with z+ logits of the scoring model and z- of a second model
    (contrastive estimation of cDPO, arXiv 2411.19943).

    The scoring model is fine-tuned on right responses, the second on wrong ones. A small value marks a token that the first
    would not have written: a critical token of a wrong response.

    Args:
        negative: The model of wrong responses, a run folder of cft train or a Hugging Face model folder.
        strength: Strength of the contrast, at least 0; 1 in the official code.

    Raises:
        ConfigError: There is no model in that folder.
        BadValue: Its vocabulary has another size.
    """

    eager = False

    @in_range
    def __init__(self, *, negative: Name, strength: AtLeastZero) -> None:
        self.negative, self.strength = negative, strength
        folder, _ = checkpoint_folder(negative, key="score.negative")
        self._spec = ModelSpec(name="negative", path=str(folder))
        self._model: PreTrainedModel | None = None

    def fingerprint(self) -> dict[str, Any]:
        weights = LazyModel(self._spec, load_tokenizer(self._spec), device="cpu").weights()
        return {"kind": "contrast", "version": 1, "strength": self.strength, "negative": weights}

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, rows: Sequence[AnnotatedResponse]) -> list[Values]:
        other, found = self._second_model(model), []
        for (right_RD, y_R), (wrong_RD, _) in zip(
            predicting_states(model, rows), predicting_states(other, rows), strict=True
        ):
            parts = zip(*(x.split(CHUNK_TOKENS) for x in (right_RD, wrong_RD, y_R)), strict=True)
            found.append(
                torch.cat(
                    [
                        contrast(project(model, a_ND), project(other, b_ND), strength=self.strength)
                        .gather(1, y_N[:, None])[:, 0]
                        .float()
                        for a_ND, b_ND, y_N in parts
                    ]
                )
            )
        return [values_R.cpu().numpy() for values_R in found]

    def _second_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The second model, on the device of the scoring model; loaded once."""
        if self._model is None:
            other = load_causal_lm(self._spec).to(model.dtype).eval()  # type: ignore[arg-type]
            if other.config.vocab_size != model.config.vocab_size:
                raise BadValue(
                    f"score.negative={self.negative}: its vocabulary has {other.config.vocab_size} tokens, the scoring "
                    f"model's {model.config.vocab_size}; distributions can be contrasted only over the same vocabulary"
                )
            self._model = other
        return self._model.to(model.device)  # type: ignore[arg-type]


def contrast(right_NV: torch.Tensor, wrong_NV: torch.Tensor, *, strength: float) -> torch.Tensor:
    """[N, V] probabilities, in float32 or higher precision. right_NV, wrong_NV: logits."""
    wide = torch.promote_types(right_NV.dtype, torch.float32)
    return torch.softmax((1 + strength) * right_NV.to(wide) - strength * wrong_NV.to(wide), dim=-1)
