"""Artifacts join what one run made with what another read, and never stop a run; the sweep of W&B starts real jobs."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from cft.annotation.store import SHIPPED
from cft.loggers.build import RunFacts, close_loggers, log_made, logging_to, wandb_logger
from cft.loggers.wandb_run import WandbRun, artifact_of
from cft.runs.lineage import Link, annotation_link, checkpoint_link
from tests.command_lines import mistakes
from tests.conftest import ROOT
from tests.stage import composed

ANNOTATION = SHIPPED / "tiny_arith"
SWEEP = ROOT / "docs" / "wandb_sweep.yaml"


@pytest.fixture(autouse=True)
def fresh_service() -> Iterator[None]:
    """W&B reads the environment once in a process, and a run that is left open would be taken for the next one."""
    import wandb

    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


class Server:
    """Stands for the run object of an online run. answer: called for every artifact."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.used: list[Any] = []
        self.logged: list[Any] = []

    def use_artifact(self, artifact: Any) -> None:
        self.answer()
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.answer()
        self.logged.append(artifact)


def opened(folder: Path, *, artifacts: Any = "link", inputs: tuple[Link, ...] = (), mode: Any = "offline") -> WandbRun:
    folder.mkdir(exist_ok=True)
    facts = RunFacts(folder, name="n", group="g", job_type="train", tags=("t" * 99,), config={}, inputs=inputs)
    logger = wandb_logger(
        facts, project="p", entity="", group="", tags=[], mode=mode, artifacts=artifacts, transcripts=0
    )
    assert isinstance(logger, WandbRun)
    return logger


def as_online(monkeypatch: pytest.MonkeyPatch, answer: Any = lambda: None) -> Server:
    server = Server(answer)
    monkeypatch.setattr(WandbRun, "online", True)
    monkeypatch.setattr(WandbRun, "experiment", property(lambda self: server))
    return server


@pytest.mark.slow
def test_the_artifact_that_training_reads_is_the_one_that_annotation_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B joins two runs where type, name and digest of the files agree."""
    run = opened(tmp_path / "r")
    server = as_online(monkeypatch)
    log_made([run], annotation_link(ANNOTATION))
    run.read(annotation_link(ANNOTATION))
    ((made,), (read,)) = server.logged, server.used
    assert (made.type, made.name, made.digest) == (read.type, read.name, read.digest)
    assert made.type == "annotation"
    assert set(made.manifest.entries) == {"manifest.json", "README.md"}
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    whole = artifact_of(annotation_link(ANNOTATION), whole=True)
    assert not (tmp_path / "staging").exists()  # nothing is copied
    files = {path.relative_to(ANNOTATION).as_posix() for path in ANNOTATION.glob("*/*.parquet")}
    assert set(whole.manifest.entries) == {"manifest.json", "README.md", *files}
    assert whole.digest != made.digest


def test_other_weights_are_another_checkpoint_of_the_same_name(tmp_path: Path, tiny_folder: Path) -> None:
    import shutil

    first, second = tmp_path / "1" / "model", tmp_path / "2" / "model"
    for folder in (first, second):
        shutil.copytree(tiny_folder, folder)
    assert checkpoint_link(first).fingerprint == checkpoint_link(second).fingerprint
    with (second / "model.safetensors").open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        last = handle.read(1)
        handle.seek(-1, os.SEEK_END)
        handle.write(bytes([last[0] ^ 1]))
    one, other = checkpoint_link(first), checkpoint_link(second)
    assert one.name == other.name
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("artifacts, online", [("none", True), ("link", False)])
def test_nothing_is_sent_where_it_is_not_wanted_or_offline(
    artifacts: str, online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tmp_path / "r", artifacts=artifacts)
    server = as_online(monkeypatch)
    monkeypatch.setattr(WandbRun, "online", online)
    run.read(annotation_link(ANNOTATION))
    run.made(annotation_link(ANNOTATION))
    assert server.used == server.logged == []


def test_a_server_that_refuses_or_is_silent_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tmp_path / "r")
    monkeypatch.setenv("LAB_TOKEN", "planted0123456789")

    def refuses() -> None:
        raise ValueError("no such project\nfor planted0123456789")

    as_online(monkeypatch, refuses)
    with pytest.warns(
        UserWarning, match="annotation-tiny_arith was not linked .no such project for <redacted>"
    ) as found:
        run.read(annotation_link(ANNOTATION))
    assert len(found) == 1
    monkeypatch.setattr("cft.loggers.wandb_run.LINK_TIMEOUT_S", 0.2)
    as_online(monkeypatch, lambda: time.sleep(30))
    started = time.monotonic()
    with pytest.warns(UserWarning, match="no answer within"):
        run.made(annotation_link(ANNOTATION))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", [pytest.param("answers 500", marks=pytest.mark.slow), "never answers"])
def test_a_broken_server_makes_the_run_offline(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the closed port of `test_wandb.py`."""

    class Broken(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if kind == "never answers":
                time.sleep(30)
            self.send_response(500)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        server.daemon_threads, server.block_on_close = True, False
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "local-" + "a" * 40)
        monkeypatch.setattr("cft.loggers.wandb_run.INIT_TIMEOUT_S", 1.0)
        with pytest.warns(UserWarning, match=r"W&B is out of reach .*continues offline"):
            run = opened(tmp_path / "r", mode="online")
        server.shutdown()
    assert not run.online
    run.log_metrics({"train/loss": 1.0}, step=0)
    close_loggers(failed=False)
    assert len(list((tmp_path / "r" / "wandb").glob("offline-run-*"))) == 1


def test_long_tags_are_cut_and_the_run_opens(tmp_path: Path) -> None:
    run = opened(tmp_path / "r", inputs=(annotation_link(ANNOTATION),))
    assert run.experiment.tags == ("t" * 64,)
    assert (tmp_path / "r" / "wandb_id").read_text().strip() == run.experiment.id
    close_loggers(failed=False)


def test_loggers_of_a_stage_are_closed_as_failed_when_it_fails(tmp_path: Path) -> None:
    import wandb

    facts = RunFacts(tmp_path, name="n", group="g", job_type="evaluate", tags=(), config={})
    nodes = composed("evaluate", "logger=wandb", "logger.wandb.mode=offline").logger

    def fail() -> None:
        with logging_to(nodes, lambda: facts) as loggers:
            assert len(loggers) == 2
            assert wandb.run is not None
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert wandb.run is None
    with logging_to(composed("evaluate").logger, lambda: pytest.fail("not asked without loggers")) as loggers:
        assert loggers == []


# --- the sweep of W&B


def commands_of_the_sweep() -> list[str]:
    """What the agent runs, by W&B's own functions: one command for each value of each parameter."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load(SWEEP.read_text(encoding="utf-8"))
    first = {name: {"value": spec["values"][0]} for name, spec in sweep["parameters"].items()}
    commands = []
    for name, spec in sweep["parameters"].items():
        for value in spec["values"]:
            filled = utils.create_sweep_command_args({"args": {**first, name: {"value": value}}})
            filled |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
            words: list[str] = []
            for word in utils.create_sweep_command(list(sweep["command"])):
                macro = word.removeprefix("${").removesuffix("}")
                words += filled[macro] if word.startswith("${") else [word]
            commands.append(shlex.join(words))
    return commands


def test_the_commands_of_the_sweep_pass_the_check() -> None:
    """As one sweep of Hydra, which is checked by the same jobs: the first values, then each other value alone."""
    commands = commands_of_the_sweep()
    assert len(commands) == 8
    values: dict[str, dict[str, None]] = {}
    for command in commands:
        head, _, arguments = command.partition(" train.py ")
        assert head == "/usr/bin/env python"
        assert "logger=wandb" in arguments
        for word in shlex.split(arguments):
            key, _, value = word.partition("=")
            values.setdefault(key, {})[value] = None
    assert sum(len(each) - 1 for each in values.values()) < len(commands)
    assert mistakes("train", "-m", *(f"{key}={','.join(each)}" for key, each in values.items())) == []


@pytest.mark.slow
def test_each_command_of_the_sweep_passes_the_check() -> None:
    for command in commands_of_the_sweep():
        assert mistakes("train", *shlex.split(command.partition(" train.py ")[2])) == []


def test_a_run_of_an_agent_keeps_the_id_that_the_agent_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = tmp_path / "config-agents1.yaml"
    parameters.write_text("wandb_version: 1\noptimizer.lr:\n  value: 0.0003\n")
    for name, value in {"SWEEP_ID": "s1", "RUN_ID": "agents1", "SWEEP_PARAM_PATH": str(parameters)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = opened(tmp_path / "r")
    assert run.experiment.id == "agents1"
    assert run.experiment.sweep_id == "s1"
    assert run.experiment.config["optimizer.lr"] == 0.0003
    assert (tmp_path / "r" / "wandb_id").read_text().strip() == "agents1"
    close_loggers(failed=False)
