"""Weights & Biases offline: one run a job, with group, tags and resolved config, nothing secret in it; and no server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.entry import FIT_ONLY, SHORT, Ended, run

SECRET = "planted0123456789abcdef0123456789abcdef0"
BLOCK, HEADER, FULL, FIRST, MIDDLE, LAST = 32768, 7, 1, 2, 3, 4  # of the record log, as in LevelDB


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run's .wandb file."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class Logged:
    """What one offline run holds."""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= {u.key: json.loads(u.value_json) for u in record.run.config.update if u.key}
            elif kind == "history":
                items = record.history.item
                self.history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
            elif kind == "exit":
                self.exit_code = record.exit.exit_code


@pytest.fixture(autouse=True)
def fresh_service() -> Iterator[None]:
    """W&B reads the environment once in a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotations")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = run("annotate", *SHORT, "annotation=a", f"annotations_dir={folder}")
    assert ended.status == 0, ended.text
    return folder


def train(annotations: Path, *arguments: str) -> Ended:
    return run(
        "train", "data.annotation=a", f"annotations_dir={annotations}", *FIT_ONLY, "trainer.max_epochs=1", *arguments
    )


def offline_runs(folder: Path) -> list[Path]:
    import wandb

    wandb.teardown()  # the service writes the end of a file a moment after the run has ended
    return sorted(folder.glob("**/wandb/offline-run-*/*.wandb"), key=lambda path: path.parts)


def test_a_multirun_gives_one_run_a_job_though_the_first_fails(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cft.module import CausalLMModule

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("LAB_TOKEN", SECRET[::-1])
    begin = CausalLMModule.on_fit_start

    def fail_once(self: CausalLMModule) -> None:
        if self.trainer.loggers[0].save_dir.endswith("0"):  # type: ignore[union-attr]
            raise RuntimeError("out of luck")
        begin(self)

    monkeypatch.setattr(CausalLMModule, "on_fit_start", fail_once)
    ended = train(annotations, "mask=all,critical,numeric", "logger=wandb", "logger.wandb.tags=[mine]", "seed=7", "-m")
    assert ended.status == 1  # of the sweep, for its first job
    assert "out of luck" in ended.text

    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    paths = offline_runs(tmp_path)
    # Each in its own job's folder, and none elsewhere.
    assert [path.relative_to(sweep).parts[:2] for path in paths] == [("0", "wandb"), ("1", "wandb"), ("2", "wandb")]
    assert not (tmp_path / "wandb").exists()
    first, second, third = map(Logged, paths)
    assert len({logged.run.run_id for logged in (first, second, third)}) == 3
    assert [logged.exit_code for logged in (first, second, third)] == [1, 0, 0]
    assert first.history == []
    for logged, mask in ((first, "all"), (second, "critical"), (third, "numeric")):
        assert logged.run.run_group == sweep.name
        assert logged.run.job_type == "train"
        assert set(logged.run.tags) == {"mine", f"mask:{mask}", "weighting:uniform", "model:tiny_arith"}
        assert logged.run.display_name == f"tiny_arith-{mask}-uniform-seed7"
        assert logged.config["seed"] == 7
        assert logged.config["mask"]["_target_"].startswith("cft.masks.")
        assert logged.config["trainer"]["max_epochs"] == 1
        assert "${" not in json.dumps(logged.config)  # resolved
    for logged in (second, third):
        assert any("train/loss" in row for row in logged.history)
        assert any("val/loss" in row for row in logged.history)

    # The folder of annotations is left out: it was made before the secrets were planted.
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(everything) > 20
    for path in everything:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert SECRET[::-1].encode() not in content, path


def test_secrets_in_the_configuration_are_refused_before_anything_is_written(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TOKEN", SECRET)
    for arguments in (["+logger.wandb.api_key=anything"], [f"logger.wandb.project={SECRET}"]):
        ended = train(annotations, "logger=wandb", *arguments)
        assert ended.status == 2
        assert SECRET not in ended.text
    assert list(tmp_path.rglob("*")) == []


def test_a_server_out_of_reach_makes_the_run_offline_and_training_goes_on(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("cft.loggers.INIT_TIMEOUT_S", 2.0)
    with pytest.warns(UserWarning, match=r"W&B is out of reach .*goes on offline.*wandb sync"):
        ended = train(annotations, "logger=wandb", "hydra.run.dir=run")
    assert ended.status == 0, ended.text
    (path,) = offline_runs(tmp_path)
    assert any("train/loss" in row for row in Logged(path).history)
    assert not list(tmp_path.glob("**/wandb/run-*"))
    assert (tmp_path / "run" / "results.json").is_file()


def test_a_resumed_run_goes_on_in_its_wandb_run_and_its_metrics(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(annotations, "logger=wandb", "hydra.run.dir=run").status == 0
    before = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    ended = train(annotations, "logger=wandb", "resume=run", "trainer.max_epochs=2")
    assert ended.status == 0, ended.text
    after = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) > len(before)
    first, second = map(Logged, offline_runs(tmp_path))
    assert first.run.run_id == second.run.run_id
    assert first.run.run_group == second.run.run_group == "run"


def test_no_setting_leaks_into_later_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from cft.loggers import RunFacts, close_loggers, wandb_logger

    facts = RunFacts(tmp_path, name="n", group="g", job_type="train", tags=(), config={})
    monkeypatch.delenv("WANDB_MODE")
    wandb_logger(facts, project="p", entity="", group="", tags=[], mode="offline")
    close_loggers(failed=False)
    assert "WANDB_MODE" not in os.environ
    import wandb

    assert wandb.run is None
