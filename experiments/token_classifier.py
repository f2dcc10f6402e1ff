"""A small token classifier for pipeline=sft_go_llmlingua2 without the hub: python -m experiments.token_classifier FOLDER

LLMLingua-2's classifier keeps the tokens that a compressed text needs. This one is a stand-in of its kind for `tiny_arith`: a
BERT of one layer, trained for seconds on the shipped annotation's responses to keep numbers and signs and to drop words.

    cft pipeline pipeline=sft_go_llmlingua2 steps.classify.score.path=FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from cft.annotation.store import SHIPPED, AnnotationStore

FOLDER = Path("outputs/token_classifier")
ROWS, STEPS, LABELS = 64, 60, ("drop", "keep")
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
_PIECE = Regex(r"[A-Za-z]+|[^A-Za-z\s]")  # words, and single digits and signs


def responses() -> list[str]:
    """The first responses of the shipped annotation."""
    return [row.response for row in AnnotationStore(SHIPPED / "tiny_arith").rows()[:ROWS]]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(_PIECE, "removed", invert=True)
    pieces = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*_SPECIAL, *pieces))}, unk_token="[UNK]"))
    backend.pre_tokenizer = split
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def write(folder: Path) -> float:
    """Train the classifier and save it; returns the fraction of pieces with the right label."""
    texts = responses()
    tokenizer = tokenizer_of(texts)
    torch.manual_seed(0)
    make: Any = BertConfig
    config = make(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    model = BertForTokenClassification(config)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    keep = torch.tensor([not word.isalpha() for word in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))])
    ids: Any = batch["input_ids"]
    labels = keep.long()[ids].masked_fill(ids < len(_SPECIAL), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = model.eval()(**batch).logits.argmax(-1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float((said == labels)[labels >= 0].double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    print(f"{folder}: {write(folder):.3f} of the pieces have the right label")


if __name__ == "__main__":
    main()
