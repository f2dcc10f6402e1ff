"""A score by a separate token classifier: the probability of a label at each token, such as LLMLingua-2's "keep"
(arXiv 2403.12968), by which SFT-GO (arXiv 2506.15021) groups tokens.

The classifier encodes the text of a response with its own tokenizer. Values are transferred by character spans: each response
token gets the largest value of the classifier tokens that it overlaps, 0 if it overlaps none (an end token).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field

from cft.errors import BadValue
from cft.models.device import place
from cft.models.hashes import weights_hash
from cft.ranges import Count, Name, in_range
from cft.scores.methods import OwnModel
from cft.scores.store import Values
from cft.types import AnnotatedResponse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Window = Annotated[int, Field(ge=8)]


class TokenClassifier(OwnModel):
    """The probability of a label at each token of a response, 0-1.

    Long responses are processed in windows that do not overlap, one at a time. The prompt is not processed; this is a
    reconstruction, since the sources do not specify it.

    Args:
        path: Any Hugging Face token classifier with a fast tokenizer: a folder or a hub id.
        revision: Revision on the hub.
        label: Number of the label; LLMLingua-2's 1 is "keep".
        window: Classifier tokens per pass, special tokens included.
    """

    @in_range
    def __init__(self, *, path: Name, revision: str = "main", label: Count = 1, window: Window = 512) -> None:
        self.path, self.revision, self.label, self.window = path, revision, label, window

    def fingerprint(self) -> dict[str, Any]:
        return {
            "kind": "token_classifier",
            "version": 1,
            "weights": weights_hash(self._loaded[1]),
            "label": self.label,
            "window": self.window,
        }

    def on(self, device: str) -> torch.device:
        """Move the classifier to the device."""
        place(self._loaded[1], device=device)
        return self._loaded[1].device

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel | None, rows: Sequence[AnnotatedResponse]) -> list[Values]:
        return [self._of(row) for row in rows]

    def _of(self, row: AnnotatedResponse) -> Values:
        if not row.response:
            raise BadValue(
                "score=token_classifier: it reads the text of responses, and these rows have no text (data=rows); annotate "
                "them: cft annotate responses=given data=rows ..."
            )
        tokenizer, model = self._loaded
        windows: Any = tokenizer(
            row.response,
            truncation=True,
            max_length=self.window,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        values = np.zeros(len(row.response_ids), dtype=np.float32)
        for ids, spans, special in zip(
            windows["input_ids"], windows["offset_mapping"], windows["special_tokens_mask"], strict=True
        ):
            logits_TL = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].double()
            probability_T = logits_TL.softmax(-1)[:, self.label].cpu().numpy()
            for probability, (start, end), is_special in zip(probability_T, spans, special, strict=True):
                if not is_special:
                    inside = (row.char_span[:, 0] < end) & (row.char_span[:, 1] > start)
                    values[inside] = np.maximum(values[inside], probability)
        return values

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model."""
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        key = f"score.path={self.path}"
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
            loaded: Any = AutoModelForTokenClassification.from_pretrained(
                self.path, revision=self.revision, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadValue(
                f"{key}: expected a token classifier, a folder or a hub id such as "
                f"microsoft/llmlingua-2-xlm-roberta-large-meetingbank, which cannot be read: {reason}"
            ) from error
        model, found = loaded
        if missing := sorted(map(str, found["missing_keys"])):
            raise BadValue(f"{key}: not a trained token classifier, it lacks the weights {', '.join(missing[:3])}")
        if not tokenizer.is_fast:
            raise BadValue(f"{key}: its tokenizer does not return character offsets; expected a fast tokenizer")
        if self.label >= model.config.num_labels:
            raise BadValue(
                f"score.label={self.label}: the classifier has the labels 0 to {model.config.num_labels - 1}"
            )
        return tokenizer, model.eval()
