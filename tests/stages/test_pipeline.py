"""The three entry points one after the other, as a user types them, in a folder whose name is awkward."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft.annotation.store import AnnotationStore
from cft.masks import Critical
from tests.entry import Ended, run

PROBLEMS = ("data.max_steps=2", "data.num_train=16")
TRAIN = ("validation.problems=2", "evaluation.problems=4", "evaluation.num_samples=2", "trainer.max_epochs=1")
MASKS = ("all", "critical", "random_like_critical")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "a b=c é"


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["3 jobs", "12 jobs"])
def repeated(request: pytest.FixtureRequest) -> int:
    """Weightings, and seeds of each, that are swept beside the masks."""
    return int(request.param)


@pytest.fixture(scope="module")
def jobs(repeated: int) -> int:
    return len(MASKS) * repeated**2


@pytest.fixture(scope="module")
def ran(folder: Path, repeated: int) -> dict[str, Ended]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = {"annotate": run("annotate", *PROBLEMS, "annotation=mine", "limit=12", "unit_size=8")}
        ended["train"] = run(
            "train",
            "-m",
            "data.annotation=mine",
            f"mask={','.join(MASKS)}",
            f"weighting={','.join(('uniform', 'probability')[:repeated])}",
            f"seed={','.join('01'[:repeated])}",
            "hydra.sweep.dir=outputs/sweep",
            *TRAIN,
        )
        ended["evaluate"] = run(
            "evaluate", "checkpoint=outputs/sweep/0", "limit=4", "num_samples=2", "hydra.run.dir=outputs/evaluated"
        )
    return ended


def test_every_stage_ends_well(ran: dict[str, Ended]) -> None:
    for stage, ended in ran.items():
        assert ended.status == 0, f"{stage}: {ended.text[-2000:]}"
        assert "Traceback" not in ended.text


def test_each_job_has_its_folder_and_its_row(ran: dict[str, Ended], folder: Path, jobs: int, repeated: int) -> None:
    sweep = folder / "outputs" / "sweep"
    results = [json.loads((sweep / str(i) / "results.json").read_text()) for i in range(jobs)]
    assert len({(r["arm"]["mask"], r["arm"]["weighting"], r["seed"]) for r in results}) == jobs
    with (sweep / "comparison.csv").open() as handle:
        assert len(list(csv.DictReader(handle))) == jobs
    with (sweep / "arms.csv").open() as handle:  # beside what was trained, the model before training
        assert len(list(csv.DictReader(handle))) == len(MASKS) * repeated + 1
    assert (sweep / "report.html").stat().st_size > 1000
    assert (sweep / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_random_mask_has_the_density_of_the_critical_one(ran: dict[str, Ended], folder: Path, jobs: int) -> None:
    eligible: dict[str, set[int]] = {}
    for i in range(jobs):
        result = json.loads((folder / "outputs" / "sweep" / str(i) / "results.json").read_text())
        eligible.setdefault(result["arm"]["mask"], set()).add(result["data"]["eligible_tokens"])
    assert eligible["random_like_critical"] == eligible["critical"]
    assert max(eligible["critical"]) < min(eligible["all"])
    rows = AnnotationStore(folder / "outputs" / "annotations" / "mine").rows()
    assert max(eligible["critical"]) <= sum(int(Critical()(row).sum()) for row in rows)


def test_metrics_are_split_into_critical_and_other_tokens(ran: dict[str, Ended], folder: Path) -> None:
    with (folder / "outputs" / "sweep" / "0" / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    for name in ("loss_critical", "loss_other", "entropy_critical", "entropy_other"):
        for split in ("train", "val"):
            assert [row for row in rows if row.get(f"{split}/{name}")], f"{split}/{name} was never logged"
    assert [row for row in rows if row.get("val/accuracy")]
    assert [row for row in rows if row.get("eval/accuracy")]


def test_the_export_is_the_best_checkpoint_bit_for_bit(ran: dict[str, Ended], folder: Path) -> None:
    job = folder / "outputs" / "sweep" / "0"
    exported = AutoModelForCausalLM.from_pretrained(job / "export", dtype=torch.float32)
    checkpoint = torch.load(job / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    weights = exported.state_dict()
    for name, tensor in checkpoint.items():
        assert torch.equal(weights[name.removeprefix("lm.model.")], tensor), name
    assert AutoTokenizer.from_pretrained(job / "export").chat_template


def test_evaluating_the_checkpoint_gives_what_training_measured(ran: dict[str, Ended], folder: Path) -> None:
    """The same problems, seeds and settings: train.py's own evaluation and evaluate.py's agree in every response."""
    columns = ["problem_id", "sample", "response_ids", "outcome"]
    trained = pq.read_table(folder / "outputs" / "sweep" / "0" / "samples.parquet", columns=columns)
    evaluated = pq.read_table(folder / "outputs" / "evaluated" / "samples.parquet", columns=columns)
    assert trained.num_rows == 4 * 3
    assert trained.equals(evaluated)
    arm = json.loads((folder / "outputs" / "evaluated" / "results.json").read_text())["arm"]
    assert arm["mask"] == "all"


@pytest.mark.slow
def test_validation_on_problems_needs_no_validation_rows(ran: dict[str, Ended], folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = ("data.annotation=mine", "data.validation_fraction=0", "hydra.run.dir=outputs/no_rows", *TRAIN)
        ended = run("train", *arguments, "evaluation.problems=0")
    assert ended.status == 0, ended.text[-2000:]
    result = json.loads((folder / "outputs" / "no_rows" / "results.json").read_text())
    assert result["best_validation"]["metric"] == "val/accuracy"
    assert result["data"]["validation_rows"] == 0


@pytest.mark.slow
def test_problems_of_the_benchmark_are_not_trained_on(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        leaking = ("split=test", "data.max_steps=2", "limit=12", "unit_size=12", "annotation=leak")
        assert run("annotate", *leaking).status == 0
        ended = run("train", "data.annotation=leak", "benchmark.max_steps=2", *TRAIN)
    assert ended.status == 2
    assert "10 of problems in the benchmark's validation or test split" in ended.text
    assert "nothing to train on" in ended.text
