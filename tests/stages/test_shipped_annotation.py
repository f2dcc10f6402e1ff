"""The annotation that ships with the package belongs to the model that ships with it, and is small."""

from __future__ import annotations

import numpy as np

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import build
from cft.masks import Critical
from cft.models.load import load_causal_lm, load_tokenizer, weights_hash
from cft.prompts.chat import prompting
from tests.stage import composed

STORE = AnnotationStore(SHIPPED / "tiny_arith")
MADE_BY = ("annotation=tiny_arith", "annotations_dir=cft/assets/annotations", "limit=3500", "unit_size=500")


def test_fingerprint_is_that_of_the_shipped_model_and_the_default_configuration() -> None:
    cfg = composed("annotate", *MADE_BY)
    spec, fingerprint = build(cfg.model), STORE.manifest()["fingerprint"]
    tokenizer = load_tokenizer(spec)
    assert fingerprint["model"]["weights"] == weights_hash(load_causal_lm(spec))
    asked = prompting(build(cfg.prompt), tokenizer)
    assert {key: fingerprint[key] for key in asked} == asked
    assert fingerprint["data"]["sha256"] == build(cfg.data).fingerprint
    assert fingerprint["decoding"]["max_new_tokens"] == cfg.max_new_tokens


def test_size_and_contents() -> None:
    size = sum(path.stat().st_size for path in STORE.folder.rglob("*") if path.is_file())
    assert size <= 2 * 1024**2
    rows, manifest = STORE.rows(), STORE.manifest()
    assert manifest["finished"]
    assert len(rows) == manifest["counts"]["annotated"] > 1500
    assert manifest["counts"]["replay_flips"] == 0 < manifest["counts"]["replays"]
    fraction = np.concatenate([Critical()(row) for row in rows]).mean()
    assert 0.25 < fraction < 0.45
