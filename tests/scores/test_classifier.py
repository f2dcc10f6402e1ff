"""A score by a token classifier: the classifier's own probabilities, at the response's tokens that they overlap."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, BertModel, PreTrainedTokenizerFast

from cft.errors import BadValue
from cft.masks.ranked import TopScore
from cft.scores.classifier import TokenClassifier
from tests.fakes import row

TEXT = "so two and 12 is 14."
SPANS = [(0, 2), (2, 6), (6, 10), (10, 11), (11, 12), (12, 13), (13, 16), (16, 20), (20, 20)]  # " 12" as three tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier with three labels whose tokens are words and single signs."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "so", "two", "and", "12", "is", "14", "."]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    torch.manual_seed(0)
    make: Any = BertConfig
    config = make(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        num_labels=3,
        initializer_range=1.0,
    )
    path = tmp_path_factory.mktemp("classifier")
    BertForTokenClassification(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    BertModel(config).save_pretrained(path / "headless")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(path / "headless")
    return path


def expected(folder: Path, label: int) -> list[float]:
    """By hand: one pass over the whole text, and the words of TEXT as `SPANS` has them."""
    model = BertForTokenClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        p = (
            model(input_ids=torch.tensor([[1, 4, 5, 6, 7, 8, 9, 10, 2]]))
            .logits[0]
            .double()
            .softmax(-1)[1:-1, label]
            .tolist()
        )
    so, two, and_, twelve, is_, fourteen, stop = p
    return [so, two, and_, 0.0, twelve, twelve, is_, max(fourteen, stop), 0.0]


def one() -> object:
    return dataclasses.replace(row(range(len(SPANS)), char_span=SPANS), response=TEXT)


def test_each_token_gets_the_largest_value_that_it_overlaps(folder: Path) -> None:
    for label in (0, 1, 2):
        kind = TokenClassifier(path=str(folder), label=label)
        (values,) = kind(None, [one()])  # type: ignore[list-item]
        np.testing.assert_allclose(values, expected(folder, label), rtol=2e-5)
    assert TokenClassifier(path=str(folder), label=0).fingerprint() != TokenClassifier(path=str(folder)).fingerprint()


def test_a_long_response_is_read_in_windows(folder: Path) -> None:
    long = dataclasses.replace(one(), response=" ".join([TEXT] * 20), char_span=np.array(SPANS, np.int32))  # type: ignore[type-var]
    (values,) = TokenClassifier(path=str(folder), window=9)(None, [long])  # type: ignore[list-item]
    # Seven words of a window are just those of TEXT, so that the first window is the pass by hand.
    np.testing.assert_allclose(values, expected(folder, 1), rtol=2e-5)


def test_what_is_no_such_classifier_is_refused(folder: Path) -> None:
    for arguments, message in (
        ({"path": str(folder / "headless")}, "it lacks the weights classifier"),
        ({"path": str(folder / "nowhere")}, "expected a token classifier"),
        ({"path": str(folder), "label": 3}, r"score\.label=3: the classifier has the labels 0 to 2"),
    ):
        with pytest.raises(BadValue, match=message):
            TokenClassifier(**arguments).fingerprint()  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="reads the text of responses"):
        TokenClassifier(path=str(folder))(None, [row([1, 2])])


def test_its_groups_are_the_top_of_each_row(folder: Path) -> None:
    (values,) = TokenClassifier(path=str(folder))(None, [one()])  # type: ignore[list-item]
    scored = dataclasses.replace(one(), scores={"token_classifier": values})  # type: ignore[type-var]
    picked = TopScore(score="token_classifier", fraction=0.3)(scored)  # type: ignore[arg-type]
    assert sorted(np.flatnonzero(picked)) == sorted(np.argsort(-values, kind="stable")[:3])
