"""Weights & Biases offline: all three stages in one project, joined by fingerprints, nothing secret in it; and no server."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cft.annotation.store import AnnotationStore
from cft.runs.lineage import annotation_link
from tests.conftest import ROOT
from tests.entry import FIT_ONLY, SHORT, Ended, run
from tests.stage import asked
from tests.wandb_files import Logged

SECRET = "planted0123456789abcdef0123456789abcdef0"
FEW = (*FIT_ONLY, "data.max_rows=8", "trainer.max_epochs=1")


@pytest.fixture(autouse=True)
def fresh_service() -> Iterator[None]:
    """W&B reads the environment once in a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def arguments_of(annotations: Path) -> tuple[str, ...]:
    return ("data.annotation=a", f"annotations_dir={annotations}", *FEW)


def train(annotations: Path, *arguments: str) -> Ended:
    return run("train", *arguments_of(annotations), *arguments)


def train_in(folder: str, *arguments: str) -> None:
    """The stage alone, with W&B, on a few rows of the shipped annotation."""
    from cft.stages.train import train as stage

    stage(*asked("train", *FEW, "logger=wandb", *arguments, folder=Path(folder)))


def offline_runs(folder: Path) -> list[Path]:
    import wandb

    wandb.teardown()  # the service writes the end of a file a moment after the run has ended
    return sorted(folder.glob("**/wandb/offline-run-*/*.wandb"), key=lambda path: path.parts)


@dataclass(frozen=True)
class Chain:
    """The three stages, one after the other, with secrets planted in the environment."""

    folder: Path
    annotations: Path
    sweep: Path
    trained: Ended
    by_stage: dict[str, list[Logged]]
    runs: list[Path]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    from cft.training.module import CausalLMModule

    folder = tmp_path_factory.mktemp("chain")
    begin = CausalLMModule.on_fit_start

    def fail_once(self: CausalLMModule) -> None:
        if self.trainer.loggers[0].save_dir.endswith("0"):  # type: ignore[union-attr]
            raise RuntimeError("out of luck")
        begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("LAB_TOKEN", SECRET[::-1])
        annotated = run("annotate", *SHORT, "annotation=a", "logger=wandb")
        assert annotated.status == 0, annotated.text
        patch.setattr(CausalLMModule, "on_fit_start", fail_once)
        annotations = folder / "outputs" / "annotations"
        arms = ("mask=all,critical", "logger=wandb", "logger.wandb.tags=[mine]", "seed=7", "-m")
        trained = train(annotations, *arms)
        (sweep,) = (folder / "outputs" / "multirun").iterdir()
        evaluated = run(
            "evaluate", f"checkpoint={sweep / '1'}", "limit=5", "logger=wandb", "logger.wandb.transcripts=2"
        )
        assert evaluated.status == 0, evaluated.text
    runs = offline_runs(folder)
    stages = [path.relative_to(folder / "outputs").parts[0] for path in runs]
    by_stage = {
        stage: [Logged(path) for path, found in zip(runs, stages, strict=True) if found == name]
        for stage, name in {"annotate": "annotate", "train": "multirun", "evaluate": "evaluate"}.items()
    }
    return Chain(folder, annotations, sweep, trained, by_stage, runs)


@pytest.mark.slow
def test_a_multirun_gives_one_run_a_job_though_the_first_fails(chain: Chain) -> None:
    assert chain.trained.status == 1  # of the sweep, for its first job
    assert "out of luck" in chain.trained.text
    # Each in its own job's folder, and none elsewhere.
    in_sweep = [path.relative_to(chain.sweep).parts[:2] for path in chain.runs if chain.sweep in path.parents]
    assert in_sweep == [("0", "wandb"), ("1", "wandb")]
    assert len(chain.runs) == 4
    assert not (chain.folder / "wandb").exists()
    first, second = chain.by_stage["train"]
    assert first.run.run_id != second.run.run_id
    assert [logged.exit_code for logged in (first, second)] == [1, 0]
    assert first.history == []
    common = {"mine", "weighting:uniform", "loss:nll", "model:tiny_arith", "annotation:a"}
    for logged, mask in ((first, "all"), (second, "critical")):
        assert logged.run.project == "cft"
        assert logged.run.run_group == chain.sweep.name
        assert logged.run.job_type == "train"
        assert set(logged.run.tags) == {f"mask:{mask}", *common}
        assert logged.run.display_name == f"tiny_arith-{mask}-uniform-seed7"
        assert logged.config["seed"] == 7
        assert logged.config["mask"]["_target_"].startswith("cft.masks.")
        assert logged.config["trainer"]["max_epochs"] == 1
        assert "${" not in json.dumps(logged.config)  # resolved
    assert any("train/loss" in row for row in second.history)
    assert any("val/loss" in row for row in second.history)


@pytest.mark.slow
def test_annotation_and_evaluation_follow_the_same_convention(chain: Chain) -> None:
    (annotated,), (evaluated,) = chain.by_stage["annotate"], chain.by_stage["evaluate"]
    assert annotated.run.project == evaluated.run.project == "cft"
    assert (annotated.run.job_type, evaluated.run.job_type) == ("annotate", "evaluate")
    assert (annotated.run.run_group, evaluated.run.run_group) == ("a", chain.sweep.name)
    assert set(annotated.run.tags) == {"model:tiny_arith", "data:arithmetic", "annotation:a"}
    of_training = {"mask:critical", "weighting:uniform", "loss:nll", "model:tiny_arith"}
    assert set(evaluated.run.tags) == {*of_training, "benchmark:arithmetic"}
    assert annotated.exit_code == evaluated.exit_code == 0
    counts = AnnotationStore(chain.annotations / "a").manifest()["counts"]
    assert sum(row["annotate/problems"] for row in annotated.history) == counts["problems"] == 6
    assert sum(row["annotate/continuations"] for row in annotated.history) == counts["forks"] > 0
    assert annotated.summary["annotation/annotated"] == counts["annotated"]


@pytest.mark.slow
def test_annotation_training_and_evaluation_name_one_another_by_their_contents(chain: Chain) -> None:
    (evaluated,) = chain.by_stage["evaluate"]
    trained = chain.by_stage["train"][1]
    weights = chain.sweep / "1" / "export" / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (checkpoint,) = evaluated.config["lineage"]["inputs"]
    listed = json.dumps([[weights.name, digest]], separators=(",", ":"))
    assert checkpoint["fingerprint"] == hashlib.sha256(listed.encode()).hexdigest()
    (annotation,) = trained.config["lineage"]["inputs"]
    assert checkpoint["came_from"]["inputs"] == [annotation]
    assert annotation["fingerprint"] == annotation_link(chain.annotations / "a").fingerprint
    assert annotation["came_from"]["command"].startswith("cft annotate data.max_steps=2")
    assert "mask=critical" in checkpoint["came_from"]["command"]
    # The same on disk.
    (results,) = (chain.folder / "outputs" / "evaluate").glob("*/results.json")
    assert json.loads(results.read_text())["lineage"] == evaluated.config["lineage"]
    on_disk = json.loads((chain.sweep / "1" / "results.json").read_text())
    assert on_disk["lineage"] == trained.config["lineage"]
    assert "logger" not in on_disk["arm"]


@pytest.mark.slow
def test_a_table_shows_every_response_to_a_few_problems(chain: Chain) -> None:
    (path,) = (chain.folder / "outputs" / "evaluate").glob("*/wandb/offline-*/files/media/table/eval/*.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    (samples,) = (chain.folder / "outputs" / "evaluate").glob("*/samples.parquet")
    chosen = {row["problem_id"] for row in rows}
    stored = [row for row in pq.read_table(samples).to_pylist() if row["problem_id"] in chosen]
    assert len(chosen) == 2
    assert len(rows) == len(stored) == 2 * 5
    for row, expected in zip(
        sorted(rows, key=lambda r: (r["problem_id"], r["sample"])),
        sorted(stored, key=lambda r: (r["problem_id"], r["sample"])),
        strict=True,
    ):
        for name in ("sample", "problem", "answer", "response", "extracted", "finish"):
            assert row[name] == expected[name]
        assert row["tokens"] == len(expected["response_ids"])
        assert (row["outcome"] == "right") == (expected["outcome"] == 1)


@pytest.mark.slow
def test_no_secret_is_in_any_file(chain: Chain) -> None:
    """Configurations, cards, tables, W&B's own files: every byte that the three stages wrote."""
    require_no_secret(chain.folder, files=40)
    assert {"README.md", "manifest.json", "results.json"} <= {path.name for path in chain.folder.rglob("*")}


def require_no_secret(folder: Path, *, files: int) -> None:
    everything = [path for path in folder.rglob("*") if path.is_file()]
    assert len(everything) > files
    for path in everything:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert SECRET[::-1].encode() not in content, path


@pytest.mark.slow
def test_the_dashboard_names_values_that_are_logged(chain: Chain) -> None:
    text = (ROOT / "docs" / "guides" / "wandb.md").read_text(encoding="utf-8")
    recipe = text.partition("## A dashboard")[2].partition("\n## ")[0]
    named = set(re.findall(r"`((?:annotate|annotation|train|val|eval|perf|lr)[/-][\w/]+)`", recipe))
    assert len(named) > 12
    logged = {name for runs in chain.by_stage.values() for one in runs for name in (*one.names, *one.summary)}
    assert named - logged == set()


@pytest.mark.slow
def test_cards_of_real_runs(chain: Chain) -> None:
    from huggingface_hub import DatasetCard, ModelCard

    results = json.loads((chain.sweep / "1" / "results.json").read_text())
    model = (chain.sweep / "1" / "export" / "README.md").read_text(encoding="utf-8")
    assert ModelCard(model, ignore_metadata_errors=False).data.library_name == "transformers"
    assert results["identity"] in model
    assert "cft annotate data.max_steps=2" in model
    assert "not tested" in model
    data = (chain.annotations / "a" / "README.md").read_text(encoding="utf-8")
    assert DatasetCard(data, ignore_metadata_errors=False).data.configs[0]["config_name"] == "rows"
    assert AnnotationStore(chain.annotations / "a").manifest()["fingerprint_sha256"] in data


def test_secrets_in_the_configuration_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TOKEN", SECRET)
    for arguments in (["+logger.wandb.api_key=anything"], [f"logger.wandb.project={SECRET}"]):
        ended = run("train", *FEW, "logger=wandb", *arguments)
        assert ended.status == 2
        assert SECRET not in ended.text
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
def test_a_server_out_of_reach_makes_the_run_offline_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("cft.loggers.wandb_run.INIT_TIMEOUT_S", 2.0)
    with pytest.warns(UserWarning, match=r"W&B is out of reach .*continues offline.*wandb sync"):
        train_in("run")
    (path,) = offline_runs(tmp_path)
    logged = Logged(path)
    assert any("train/loss" in row for row in logged.history)
    assert logged.config["lineage"]["inputs"][0]["kind"] == "annotation"
    assert not list(tmp_path.glob("**/wandb/run-*"))
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_wandb_run_and_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TOKEN", SECRET)
    train_in("run")
    before = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    train_in("run", "resume=run", "trainer.max_epochs=2")
    after = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) > len(before)
    first, second = map(Logged, offline_runs(tmp_path))
    assert first.run.run_id == second.run.run_id
    assert first.run.run_group == second.run.run_group == "run"
    require_no_secret(tmp_path, files=20)


def test_no_setting_leaks_into_later_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from cft.loggers.build import RunFacts, close_loggers, wandb_logger

    facts = RunFacts(tmp_path, name="n", group="g", job_type="train", tags=(), config={})
    monkeypatch.delenv("WANDB_MODE")
    wandb_logger(facts, project="p", entity="", group="", tags=[], mode="offline", artifacts="link", transcripts=0)
    close_loggers(failed=False)
    assert "WANDB_MODE" not in os.environ
    import wandb

    assert wandb.run is None
