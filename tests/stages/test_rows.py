"""Training on rows of one's own, from the command line to the report."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft.annotation.store import SHIPPED, AnnotationStore, StoreError
from cft.config.build import build
from cft.data.annotated import AnnotatedDataModule
from cft.data.batches import collate
from cft.data.module import RowsDataModule, RowsRequest
from cft.masks import All, Critical, TopScore
from cft.prompts.chat import Chat
from cft.runs.results import RunResults
from cft.stages.export import export
from cft.stages.score import score
from cft.training.selective_lm import SelectiveLM
from cft.types import StepCounts
from tests.command_lines import mistakes
from tests.entry import run
from tests.given_rows import SHAPES, rows, write
from tests.stage import asked, composed
from tests.trl_settings import ONE_STEP

FIT = ("data=rows", "mask=all", "validation.problems=0", "evaluation.problems=0", "callbacks=best_loss")
CHAT = Chat(system="", template="{question}")


def test_labels_come_back_as_the_same_rows_and_the_same_loss(tmp_path: Path, tiny_arith_path: Path) -> None:
    """Difference 0.0 for every normalizer, weights between 0 and 1 included."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_arith_path, dtype=torch.float32).eval()
    chosen = ("mask=random_like", "mask@mask.like=numeric", "data.max_rows=12", "data.validation_fraction=0.3")
    folder = export(*asked("export", "annotation=tiny_arith", *chosen, f"out={tmp_path / 'out'}"))
    files = {name: str(folder / "data" / f"{name}-00000-of-00001.parquet") for name in ("train", "validation")}
    cfg = composed("train", *chosen)
    store = AnnotationStore(SHIPPED / "tiny_arith")
    sha256 = store.manifest()["fingerprint"]["tokenizer"]
    request = RowsRequest(build(cfg.mask), Critical(), {}, "nowhere", sha256, 0, frozenset())
    before: AnnotatedDataModule = build(cfg.data)(request)
    brought = composed("train", "data=rows", "mask=all", f"data.path={files['train']}", "data.id_field=response_id")
    request = RowsRequest(All(), Critical(), {}, "nowhere", sha256, 0, frozenset(), tokenizer=tokenizer, prompt=CHAT)
    after: RowsDataModule = build(brought.data)(request)
    validated: RowsDataModule = build({**brought.data.node, "validation_path": files["validation"]})(request)
    assert [row.row_id for row in validated.validation_rows] == [row.row_id for row in before.validation_rows]
    same = [*validated.train_rows, *validated.validation_rows]
    for one, other in zip([*before.train_rows, *before.validation_rows], same, strict=True):
        assert one.row_id == other.row_id
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.weight, other.weight)
        assert np.array_equal(one.token_group >= 0, other.token_group >= 0)
    assert after.rows_sha256 != validated.rows_sha256  # a part of the file is held out, or none

    def loss(data: RowsDataModule, *overrides: str) -> float:
        settings = composed("train", "mask=all", *overrides)
        lm = SelectiveLM(model, build(settings.loss)(build(settings.weighting)))
        counts = sum((row.counts() for row in data.train_rows), StepCounts())
        with torch.no_grad():
            (term,) = lm(collate(data.train_rows, step_counts=counts))
        return float(term.mean(counts))

    for normalizer in ("critical", "response", "sequence"):
        assert loss(before, f"loss.normalizer={normalizer}") - loss(validated, f"loss.normalizer={normalizer}") == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels", "trl", "axolotl", "llama_factory", "sharegpt"])
def test_an_export_for_another_trainer_comes_back_as_the_same_rows(
    name: str, tmp_path: Path, tiny_arith_path: Path
) -> None:
    """From its folder, by the splits that its card names."""
    chosen = (f"mask={'all' if name == 'sharegpt' else 'critical'}", "data.max_rows=12", "data.validation_fraction=0.3")
    out = tmp_path / name
    export(*asked("export", f"format={name}", "annotation=tiny_arith", *chosen, f"out={out}"))
    cfg = composed("train", *chosen)
    sha256 = AnnotationStore(SHIPPED / "tiny_arith").manifest()["fingerprint"]["tokenizer"]
    request = RowsRequest(build(cfg.mask), Critical(), {}, "nowhere", sha256, 0, frozenset())
    before: AnnotatedDataModule = build(cfg.data)(request)
    named = ("data.messages_field=conversations",) if name == "sharegpt" else ()
    brought = composed("train", "data=rows", "mask=all", f"data.path={out}", "data.validation_split=validation", *named)
    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)
    request = RowsRequest(All(), Critical(), {}, "nowhere", sha256, 0, frozenset(), tokenizer=tokenizer, prompt=CHAT)
    after: RowsDataModule = build(brought.data)(request)
    for theirs, ours in ((before.train_rows, after.train_rows), (before.validation_rows, after.validation_rows)):
        assert len(theirs) > 0
        for one, other in zip(theirs, ours, strict=True):
            assert np.array_equal(one.ids, other.ids)
            assert np.array_equal(one.weight, other.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ms_swift", "tinker", "verl"])
def test_an_export_that_rows_cannot_hold_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    accepted = ("format.response_end=train",) if name == "ms_swift" else ()
    export(*asked("export", f"format={name}", "annotation=tiny_arith", "data.max_rows=12", f"out={out}", *accepted))
    (file,) = out.glob("data/train-*")
    ended = run("train", *FIT, f"data.path={file}", f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.status == 2
    expected = "message 1 has loss_scale, which is not read" if name == "ms_swift" else "no known shape"
    assert expected in ended.text


def test_scores_of_rows_are_at_their_tokens(tmp_path: Path, tiny_arith_path: Path) -> None:
    """The most uncertain tokens of the last turn, by entropies of the model's own logits; other rows name the command."""
    path = write(tmp_path / "chats.jsonl", rows("messages", tokenizer=None, count=4))
    brought = ("data=rows", f"data.path={path}", "data.turns=last", f"annotations_dir={tmp_path / 'out'}")
    score(*asked("score", *brought, "score=entropy", "name=entropy"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)
    mask = TopScore(score="entropy", fraction=0.2)
    directory = str(tmp_path / "out")
    request = RowsRequest(mask, Critical(), {}, directory, "", 0, frozenset(), tokenizer=tokenizer, prompt=CHAT)
    cfg = composed("train", *brought, "mask=all", "data.validation_fraction=0")
    data: RowsDataModule = build(cfg.data)(request)
    assert data.scores.keys() == {"entropy"}
    model = AutoModelForCausalLM.from_pretrained(tiny_arith_path, dtype=torch.float32).eval()
    for row in data.train_rows:
        at = np.flatnonzero(row.token_group >= 0)
        with torch.no_grad():
            logprob = model(torch.from_numpy(row.ids)[None]).logits[0].log_softmax(-1)
        entropy = -(logprob.exp() * logprob).sum(-1).numpy()[at - 1]
        count = int(np.ceil(0.2 * len(at) - 1e-9))
        assert set(np.flatnonzero(row.weight)) == set(at[np.argsort(-entropy, kind="stable")[:count]])
    write(path, [{**row, "messages": row["messages"][2:]} for row in rows("messages", tokenizer=None, count=4)])
    with pytest.raises(StoreError, match=r"no values for row .* \(chats.jsonl:1\) with its current tokens"):
        build(cfg.data)(request)


REFUSED: list[tuple[tuple[str, ...], str, str]] = [
    (("mask=critical",), "mask", "Critical reads the outcomes of each token's alternatives"),
    (("mask=random_like", "mask@mask.like=critical"), "mask", "Critical reads"),
    (("mask=entropy",), "mask", "HighEntropy reads entropies"),
    (("mask=all", "groups=critical", "loss=sft_go"), "groups", "Critical reads"),
    (("mask=all", "reference=annotation", "weighting=excess_loss"), "reference", "log-probs of the annotating model"),
    (
        ("mask=all", "+regularizer@loss.regularizers.h=entropy_bonus", "loss.regularizers.h.where=other"),
        "loss.regularizers.h.where",
        "other needs to know which tokens are critical",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "key", "text"), REFUSED, ids=[key + str(i) for i, (_, key, _) in enumerate(REFUSED)]
)
def test_what_needs_evidence_is_refused_with_the_command_that_makes_it(
    overrides: tuple[str, ...], key: str, text: str
) -> None:
    (found,) = mistakes("train", "data=rows", "data.path=my rows.jsonl", *overrides)
    assert found.startswith(f"{key}: ")
    assert text in found
    rows_ = "data=rows 'data.path='\"'\"'my rows.jsonl'\"'\"''"
    command = (
        f"cft score {rows_} score=entropy" if "HighEntropy" in text else f"responses=given {rows_} annotation=NAME"
    )
    assert command in found


def test_a_missing_file_and_a_negative_weight_are_named_before_the_model_loads(
    tmp_path: Path, tiny_arith_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("train", *FIT, "data.path=none.jsonl", "hydra.run.dir=run")
    assert ended.status != 0
    assert "data.path=none.jsonl: no such file (looked in" in ended.text
    brought = rows("tokens", tokenizer=AutoTokenizer.from_pretrained(tiny_arith_path), count=30)
    brought[3]["weights"][-1] = -1
    write(tmp_path / "rows.jsonl", [{**row, "id": f"row {i}"} for i, row in enumerate(brought)])
    monkeypatch.setattr("cft.models.lazy.LazyModel.load", lambda self: pytest.fail("the model was loaded"))
    ended = run("train", *FIT, "data.path=rows.jsonl", "data.id_field=id", "hydra.run.dir=run")
    assert ended.status != 0
    assert "loss.negative_weights=false: row row 3 of rows.jsonl has the weight -1 at token" in ended.text


@pytest.mark.slow
def test_a_run_says_what_it_was_trained_on_and_resumes(
    tmp_path: Path, tiny_arith_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "chats.jsonl", rows("messages", tokenizer=None))
    fit = (*FIT, "data.path=chats.jsonl", "data.answer_field=answer", "trainer.max_epochs=1")
    ended = run("train", *fit, "hydra.run.dir=run")
    assert ended.status == 0, ended.text
    assert "rows of chats.jsonl" in ended.text
    results = RunResults.read(Path("run/results.json"))
    assert results.data is not None
    assert results.data["rows"] == "chats.jsonl"
    assert results.data["rows_of_shape_messages"] == 40
    (link,) = [link for link in results.lineage["inputs"] if link["kind"] == "rows"]
    assert link["fingerprint"] == results.data["fingerprint"]
    card = Path("run/export/README.md").read_text(encoding="utf-8")
    assert "| rows of | chats.jsonl |" in card
    ended = run("train", *fit, "trainer.max_epochs=2", "resume=run")
    assert ended.status == 0, ended.text
    chats = Path("chats.jsonl").read_text().splitlines(keepends=True)
    Path("chats.jsonl").write_text("".join(chats[1:]))
    ended = run("train", *fit, "trainer.max_epochs=3", "resume=run")
    assert ended.status != 0
    assert "it began on other rows than chats.jsonl gives now" in ended.text


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_trained_on_and_tested(
    shape: str, tmp_path: Path, tiny_arith_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", rows(shape, tokenizer=AutoTokenizer.from_pretrained(tiny_arith_path)))
    evaluation = ("evaluation.problems=4", "evaluation.num_samples=0", "evaluation.base=false", "benchmark.num_test=4")
    ended = run("train", *FIT, "data.path=rows.jsonl", "trainer.max_epochs=2", *evaluation, "hydra.run.dir=run")
    assert ended.status == 0, ended.text
    results = json.loads(Path("run/results.json").read_text())
    assert results["data"][f"rows_of_shape_{shape}"] == 40
    assert "eval/accuracy" in results["metrics"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[bench]'")
def test_the_loss_of_trl_on_the_same_chats_is_ours(tmp_path: Path, tiny_arith_path: Path) -> None:
    """SFTTrainer with assistant_only_loss, whose template marks the assistant's turns, on one step of eight chats."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)
    tokenizer.chat_template = (
        "<bos>{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>{% endgeneration %}"
        "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    )
    chats = [
        [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        for row in rows("messages", tokenizer=None, count=8)
    ]
    losses: list[float] = []

    class Recorded(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

    trainer = Recorded(
        model=str(tiny_arith_path),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=8,
            assistant_only_loss=True,
            **ONE_STEP,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"messages": chat} for chat in chats]),
    )
    trainer.train()

    path = write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    request = RowsRequest(All(), Critical(), {}, "nowhere", "", 0, frozenset(), tokenizer=tokenizer, prompt=CHAT)
    overrides = ("mask=all", "data=rows", f"data.path={path}", "data.validation_fraction=0")
    cfg = composed("train", *overrides, "callbacks.best.monitor=val/accuracy")
    data: RowsDataModule = build(cfg.data)(request)
    counts = sum((row.counts() for row in data.train_rows), StepCounts())
    model = AutoModelForCausalLM.from_pretrained(tiny_arith_path, dtype=torch.float32).eval()
    with torch.no_grad():
        (term,) = SelectiveLM(model, build(cfg.loss)(build(cfg.weighting)))(
            collate(data.train_rows, step_counts=counts)
        )
    assert float(term.mean(counts)) == pytest.approx(losses[0], rel=1e-5)
