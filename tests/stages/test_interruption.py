"""kill -9 at named points (tests/kill_driver.py), then the same command: what comes out equals an uninterrupted run."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cft.annotation.store import AnnotationStore, table_hash
from cft.engines.reference import ReferenceEngine
from cft.engines.shared_prefix import SharedPrefixEngine
from cft.runs.run import identity_of
from cft.training.checkpointing.checkpoints import CHECKPOINTS, kept_checkpoints, load_checkpoint, newest_checkpoint
from tests.conftest import ROOT
from tests.damage import flip, same, truncate
from tests.entry import FIT_ONLY, SHORT, Ended, run
from tests.fakes import random_llama

# Three units; four of six problems are in the first two.
ANNOTATE = (*SHORT, "unit_size=2", "annotation=a", "annotations_dir=annotations")
# Steps of one row of the shipped annotation, dropout in the adapters: the weights show every draw and every step.
TRAIN = (
    *FIT_ONLY,
    "data.max_rows=10",
    "data.batch_size=1",
    "trainer.max_epochs=3",
    "callbacks.last.every_n_steps=2",
    "model/lora=default",
    "model.lora.dropout=0.3",
)


EPOCH_STEPS = 4


def killed(point: str, stage: str, *arguments: str, folder: Path) -> None:
    """Run a stage in `folder` until it dies at `point`."""
    command = [sys.executable, str(ROOT / "tests" / "kill_driver.py"), point, stage, *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an annotation and a training run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for ended in (run("annotate", *ANNOTATE), run("train", *TRAIN, "hydra.run.dir=run")):
            assert ended.status == 0, ended.text
    return folder


def counts_and_tokens(store: AnnotationStore) -> list[dict[str, object]]:
    """Counts and compute of the units, without what a clock measured."""
    return [
        {
            "counts": record["counts"],
            "tokens": {k: v for k, v in record["compute"].items() if not k.endswith("seconds")},
        }
        for record in store.units().values()
    ]


@pytest.mark.parametrize(
    "point, committed",
    [
        pytest.param("generating", 1, marks=pytest.mark.slow),
        pytest.param("appending", 1, marks=pytest.mark.slow),
        pytest.param("committing", 1, marks=pytest.mark.slow),  # quick: a shard is killed there
    ],
)
def test_an_annotation_killed_and_resumed_equals_an_uninterrupted_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, committed: int
) -> None:
    killed(point, "annotate", *ANNOTATE, folder=tmp_path)
    store, uninterrupted = AnnotationStore(tmp_path / "annotations" / "a"), AnnotationStore(whole / "annotations" / "a")
    assert len(store.units()) == committed
    assert store.manifest()["finished"] is False
    monkeypatch.chdir(tmp_path)
    ended = run("annotate", *ANNOTATE)
    assert ended.status == 0, ended.text
    assert f"{committed} of 3 units are already done" in ended.text
    assert table_hash(store.rows()) == table_hash(uninterrupted.rows())
    same(store.rows(), uninterrupted.rows(), atol=1e-4)
    assert store.problems() == uninterrupted.problems()
    assert counts_and_tokens(store) == counts_and_tokens(uninterrupted)
    assert store.manifest()["counts"] == uninterrupted.manifest()["counts"]
    # Nothing twice, and nothing left over.
    for kind in ("rows", "problems", "units"):
        assert len(list((store.folder / kind).iterdir())) == 3


@pytest.mark.slow
def test_an_annotation_killed_three_times_equals_an_uninterrupted_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process meets what the one before left of the second unit, and dies a step further on."""
    store, uninterrupted = AnnotationStore(tmp_path / "annotations" / "a"), AnnotationStore(whole / "annotations" / "a")
    left = []
    for point in ("generating", "appending", "committing"):
        killed(point, "annotate", *ANNOTATE, folder=tmp_path)
        assert len(store.units()) == 1
        left.append((len(list((store.folder / "rows").iterdir())), len(list((store.folder / "units").iterdir()))))
    assert left == [(1, 1), (2, 1), (2, 2)]  # nothing; the files of the unit; its record, too, under another name
    monkeypatch.chdir(tmp_path)
    ended = run("annotate", *ANNOTATE)
    assert ended.status == 0, ended.text
    assert table_hash(store.rows()) == table_hash(uninterrupted.rows())
    same(store.rows(), uninterrupted.rows(), atol=1e-4)
    assert store.problems() == uninterrupted.problems()
    assert counts_and_tokens(store) == counts_and_tokens(uninterrupted)
    for kind in ("rows", "problems", "units"):
        assert len(list((store.folder / kind).iterdir())) == 3


@pytest.mark.slow
def test_a_kill_between_a_replaced_unit_and_its_old_shards(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "annotations", tmp_path / "annotations")
    killed("replacing", "annotate", *ANNOTATE, "num_alternatives=3", folder=tmp_path)
    store = AnnotationStore(tmp_path / "annotations" / "a")
    assert len(list((store.folder / "rows").iterdir())) == 4  # the old shard of the second unit is still there
    monkeypatch.chdir(tmp_path)
    assert run("annotate", *ANNOTATE, "num_alternatives=3").status == 0
    fresh = run("annotate", *ANNOTATE, "num_alternatives=3", "annotation=b")
    assert fresh.status == 0
    same(store.rows(), AnnotationStore(tmp_path / "annotations" / "b").rows(), atol=1e-4)
    assert len(list((store.folder / "rows").iterdir())) == 3


def test_rows_of_other_numerics_do_not_join_an_annotation(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cft.stages.annotation_worker import numerics

    shutil.copytree(whole / "annotations", tmp_path / "annotations")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "annotations" / "a" / "manifest.json"
    before = path.read_bytes()
    ended = run("annotate", *ANNOTATE, "engine.tie_margin=0.01")
    assert ended.status == 2
    assert "numerics.tie_margin: stored 0.001, now 0.01" in ended.text
    assert path.read_bytes() == before
    ended = run("annotate", *ANNOTATE, "engine.max_rows=7")  # the same outcomes, and a record of it
    assert ended.status == 0, ended.text
    (first, second), then = json.loads(path.read_bytes())["written_by"], json.loads(before)["written_by"]
    assert [first] == then
    assert second["engine"]["max_rows"] == 7
    assert second["command"].endswith("engine.max_rows=7")
    # In half precision how rows are batched changes what is decoded; on another device anything may.
    model = random_llama()
    few, many = (SharedPrefixEngine(model, (1,), max_rows=rows) for rows in (7, 256))
    assert numerics(few) == numerics(many) == numerics(ReferenceEngine(model, (1,)))
    model.to(torch.bfloat16)
    few, many = (numerics(SharedPrefixEngine(model, (1,), max_rows=rows)) for rows in (7, 256))
    assert (few["max_rows"], many["max_rows"], few["exact"]) == (7, 256, False)
    assert few["name"] != numerics(ReferenceEngine(model, (1,)))["name"]


# ---- training


def metrics(run_folder: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without what a clock measured."""
    with (run_folder / "metrics.csv").open(newline="") as handle:
        rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(handle)]
    return [row for row in rows if any(v for k, v in row.items() if k not in ("epoch", "step"))]


def end_state(run_folder: Path) -> dict[str, object]:
    """All that training leaves behind, but for times and names."""
    last = load_checkpoint(newest_checkpoint(run_folder / CHECKPOINTS))
    results = json.loads((run_folder / "results.json").read_text())
    return {
        # The model card names the command, which is another one.
        "exported": {p.name: p.read_bytes() for p in (run_folder / "export").iterdir() if p.name != "README.md"},
        "weights": {name: tensor.numpy().tobytes() for name, tensor in last["state_dict"].items()},
        "optimizer": {
            (i, name): tensor.numpy().tobytes()
            for i, state in last["optimizer_states"][0]["state"].items()
            for name, tensor in state.items()
        },
        "steps": (last["epoch"], last["global_step"]),
        "metrics": metrics(run_folder),
        "results": {k: v for k, v in results.items() if k not in ("train_seconds", "spent", "run", "lineage")},
    }


# Steps that a generator of random numbers chose, of those there are.
KILLS = [f"step={step}" for step in sorted(random.Random(20).sample(range(1, 3 * EPOCH_STEPS + 1), 3))]


@pytest.mark.slow
@pytest.mark.parametrize("point", [*KILLS, "epoch_validated", "checkpoint_half_written"])
def test_a_training_killed_and_resumed_ends_in_the_same_bits(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    shutil.copytree(whole / "annotations", tmp_path / "annotations")
    killed(point, "train", *TRAIN, "hydra.run.dir=run", folder=tmp_path)
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.chdir(tmp_path)
    ended = run("train", *TRAIN, "resume=auto", "hydra.run.dir=again")
    assert ended.status == 0, ended.text
    ours, theirs = end_state(tmp_path / "run"), end_state(whole / "run")
    for part in theirs:
        assert ours[part] == theirs[part], part


@pytest.fixture
def copied_run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "run"


def test_a_run_is_not_resumed_under_another_configuration(copied_run: Path) -> None:
    ended = run("train", *TRAIN, "resume=run", "optimizer.lr=0.5", "mask=all")
    assert ended.status == 2
    assert "Traceback" not in ended.text
    assert "optimizer.lr: then 0.0001, now 0.5" in ended.text
    assert "mask._target_: then 'cft.masks.Critical', now 'cft.masks.All'" in ended.text
    assert "seed:" not in ended.text


@pytest.mark.parametrize("damage", [flip, pytest.param(truncate, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_not_resumed_from(copied_run: Path, damage: object) -> None:
    path, older = kept_checkpoints(copied_run / CHECKPOINTS)
    damage(path)  # type: ignore[operator]
    ended = run("train", *TRAIN, "resume=run", "trainer.max_epochs=4")
    assert ended.status == 2
    assert "Traceback" not in ended.text
    assert f"run/checkpoints/{path.name}: damaged" in ended.text
    assert f"Delete it to resume from {older.name}" in ended.text


@pytest.mark.slow
def test_auto_passes_over_a_damaged_checkpoint_and_says_so(copied_run: Path) -> None:
    path, older = kept_checkpoints(copied_run / CHECKPOINTS)
    truncate(path)
    expected = json.loads((copied_run / "results.json").read_text())
    (copied_run / "results.json").unlink()
    ended = run("train", *TRAIN, "resume=auto", "hydra.run.dir=another")
    assert ended.status == 0, ended.text
    assert f"run/checkpoints/{path.name} is damaged" in ended.text
    assert f"resuming {copied_run} from {older.name}" in ended.text
    found = json.loads((copied_run / "results.json").read_text())
    assert found["best_validation"] == expected["best_validation"]
    assert found["budget"] == expected["budget"]
    assert not (copied_run.parent / "another" / "results.json").exists()
    left = sorted(p.name for p in (copied_run / CHECKPOINTS).iterdir())
    assert left == ["best.ckpt", older.name, path.name, f"{path.name}.damaged"]


@pytest.mark.slow
def test_a_new_run_in_an_old_folder_keeps_its_own_checkpoints(copied_run: Path) -> None:
    (copied_run / "results.json").unlink()
    for path in kept_checkpoints(copied_run / CHECKPOINTS):
        truncate(path)
    ended = run("train", *TRAIN, "hydra.run.dir=run", "trainer.max_epochs=1")
    assert ended.status == 0, ended.text
    steps = [load_checkpoint(path)["global_step"] for path in kept_checkpoints(copied_run / CHECKPOINTS)]
    assert steps == [EPOCH_STEPS, EPOCH_STEPS // 2]


def test_auto_leaves_a_finished_run(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cft.training.module import CausalLMModule

    def refuse(*args: object) -> None:
        raise AssertionError("no step was to be done")

    before = (copied_run / "results.json").read_bytes()
    monkeypatch.setattr(CausalLMModule, "training_step", refuse)
    ended = run("train", *TRAIN, "resume=auto", "hydra.run.dir=another")
    assert ended.status == 0, ended.text
    assert f"{copied_run} has finished; nothing to do" in ended.text
    assert (copied_run / "results.json").read_bytes() == before


@pytest.mark.slow
def test_auto_leaves_a_run_of_another_configuration(copied_run: Path) -> None:
    ended = run("train", *TRAIN, "resume=auto", "hydra.run.dir=another", "seed=1", "trainer.max_epochs=1")
    assert ended.status == 0, ended.text
    assert "no run of this configuration to resume from" in ended.text
    assert (copied_run.parent / "another" / "results.json").is_file()


@pytest.mark.slow
def test_rows_of_a_step_stay_the_same_or_the_run_is_not_resumed(copied_run: Path) -> None:
    ended = run("train", *TRAIN, "resume=run", "trainer.max_epochs=4", "trainer.accumulate_grad_batches=2")
    assert ended.status == 2
    assert "an optimizer step of that run has 1 rows" in ended.text
    assert "here it would have 2" in ended.text


@pytest.mark.slow
def test_what_cannot_be_resumed_says_why(copied_run: Path) -> None:
    ended = run("train", *TRAIN, "resume=elsewhere")
    assert ended.status == 2
    assert "resume=elsewhere: no elsewhere/config.yaml" in ended.text
    for path in kept_checkpoints(copied_run / CHECKPOINTS):
        path.unlink()
    ended = run("train", *TRAIN, "resume=run", "trainer.max_epochs=4")
    assert ended.status == 2
    assert "ended before it wrote its first one" in ended.text


def interrupted(*arguments: str, step: int) -> Ended:
    """A training that Ctrl-C ends in an optimizer step, counted from 1."""
    from cft.training.module import CausalLMModule

    original, handler = CausalLMModule.training_step, signal.getsignal(signal.SIGINT)

    def training_step(module: CausalLMModule, *args: object) -> object:
        if module.global_step == step - 1:
            raise KeyboardInterrupt
        return original(module, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLMModule, "training_step", training_step)
        ended = run("train", *TRAIN, *arguments)
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert ended.status == 130, ended.text
    return ended


@pytest.mark.slow
def test_a_continuation_that_was_cut_off_is_not_taken_for_finished(copied_run: Path) -> None:
    """Twelve steps were asked for and done; then sixteen, and the fifteenth is the end of the process."""
    earlier = json.loads((copied_run / "results.json").read_text())
    exported = (copied_run / "export" / "model.safetensors").read_bytes()
    more = ("resume=auto", "trainer.max_epochs=4", "hydra.run.dir=another")
    interrupted(*more, step=15)
    assert not (copied_run / "results.json").exists()
    assert not (copied_run / "export").exists()
    assert json.loads((copied_run / "results.json.step-12").read_text()) == earlier
    assert (copied_run / "export.step-12" / "model.safetensors").read_bytes() == exported
    ended = run("train", *TRAIN, *more)
    assert ended.status == 0, ended.text
    assert f"resuming {copied_run} from step-00000014.ckpt" in ended.text
    results = json.loads((copied_run / "results.json").read_text())
    assert results["budget"] == {"epochs": 4, "steps": 16, "rows_per_step": 1}
    # Another schedule than that of a run of four epochs, so that the two are not taken for repetitions.
    assert results["settings"]["schedule.replanned"] == "at step 12 from 12 to 16 steps"
    assert results["identity"] == identity_of(results["settings"])
    state = load_checkpoint(newest_checkpoint(copied_run / CHECKPOINTS))["callbacks"]["History"]
    assert state["plans"] == [[0, 12], [12, 16]]
    # Both parts; the last checkpoint was written before the end.
    assert 0 < earlier["train_seconds"] < results["train_seconds"]
    assert 0 < state["seconds"] <= results["train_seconds"]
    assert "schedule.replanned" not in earlier["settings"]
    ended = run("train", *TRAIN, *more)
    assert ended.status == 0, ended.text
    assert f"{copied_run} has finished; nothing to do" in ended.text
    ended = run("train", *TRAIN, "resume=run", "trainer.max_epochs=2")
    assert ended.status == 2
    assert "that run is already in epoch 4, and trainer.max_epochs=2 is lower" in ended.text


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """What a run has left, and whether it was written since."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and ".hydra" not in path.parts and path.name != ".lock"
    }


def test_a_start_that_is_refused_leaves_the_run_as_it_was(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cft.data.annotated import AnnotatedDataModule

    assert {"config.yaml", "data.json", "metrics.csv", "results.json"} <= files(copied_run).keys()
    refused(copied_run, "hydra.run.dir=run", "data.max_rows=8", why="holds a run that has finished")
    monkeypatch.setattr(AnnotatedDataModule, "facts", grown(AnnotatedDataModule.facts))
    refused(copied_run, "resume=run", "trainer.max_epochs=4", why="it began on other rows")


@pytest.mark.slow
def test_every_start_that_is_refused_leaves_the_run_as_it_was(copied_run: Path) -> None:
    more = ("resume=run", "trainer.max_epochs=4")
    refused(copied_run, *more, "data.batch_size=2", why="an optimizer step of that run has 1 rows")
    refused(copied_run, *more, "+trainer.limit_val_batches=0", why="trainer.limit_val_batches")
    (copied_run / "results.json").unlink()
    refused(copied_run, "hydra.run.dir=run", why="holds a run that has not finished")
    refused(copied_run, "hydra.run.dir=run", "seed=1", why="holds a run of another configuration (")
    refused(copied_run, "hydra.run.dir=run", "seed=1", "resume=auto", why="seed: then 0, now 1")


def refused(folder: Path, *arguments: str, why: str) -> None:
    before = files(folder)
    ended = run("train", *TRAIN, *arguments)
    assert ended.status == 2, ended.text
    assert why in ended.text
    assert files(folder) == before


def grown(facts: Callable[..., dict[str, object]]) -> Callable[..., dict[str, object]]:
    """The facts of a data module whose annotation has other rows now."""
    return lambda data: facts(data) | {"rows_sha256": "0" * 64}


@pytest.mark.slow
def test_steps_that_end_within_an_epoch_are_validated_and_exported(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has 4 steps; three steps have no end of an epoch among them."""
    ended = run("train", *TRAIN, "trainer.max_epochs=-1", "trainer.max_steps=3", "hydra.run.dir=short")
    assert ended.status == 0, ended.text
    folder = copied_run.parent / "short"
    results = json.loads((folder / "results.json").read_text())
    assert results["budget"] == {"epochs": 0.75, "steps": 3, "rows_per_step": 1}
    best, last = (load_checkpoint(folder / CHECKPOINTS / name) for name in ("best.ckpt", "step-00000003.ckpt"))
    assert best["global_step"] == 3
    assert all(torch.equal(weight, last["state_dict"][name]) for name, weight in best["state_dict"].items())


@pytest.mark.parametrize("where", ["in a step", pytest.param("in validation", marks=pytest.mark.slow)])
def test_sigterm_leaves_a_checkpoint_and_the_command_that_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import os

    from cft.training.module import CausalLMModule

    monkeypatch.chdir(tmp_path)
    calls = 0

    def ask(original: Callable[..., object]) -> Callable[..., object]:
        def asked(module: CausalLMModule, *args: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(module, *args)

        return asked

    name = "training_step" if where == "in a step" else "validation_step"
    with monkeypatch.context() as patch:
        patch.setattr(CausalLMModule, name, ask(getattr(CausalLMModule, name)))
        ended = run("train", *TRAIN, "hydra.run.dir=run")
    assert ended.status == 75, ended.text
    assert "Traceback" not in ended.text
    assert "Interrupted by SIGTERM. Resume from the newest checkpoint with: cft train" in ended.text
    assert f"resume={tmp_path / 'run'}" in ended.text
    steps = [load_checkpoint(path)["global_step"] for path in kept_checkpoints(tmp_path / "run" / CHECKPOINTS)]
    assert steps[0] == (6 if where == "in a step" else EPOCH_STEPS)
    ended = run("train", *TRAIN, "resume=run")
    assert ended.status == 0, ended.text
    ours, theirs = end_state(tmp_path / "run"), end_state(whole / "run")
    for part in theirs:
        assert ours[part] == theirs[part], part


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal as signals

    from cft.annotation.annotator import Annotator
    from cft.training.module import CausalLMModule

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    handler = signals.getsignal(signals.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Annotator, "fresh", interrupt)
        ended = run("annotate", *ANNOTATE, "limit=6", "annotation=new one".replace(" ", "-"))
    assert ended.status == 130
    assert "resume with the same command: cft annotate data.max_steps=2" in ended.text
    with monkeypatch.context() as patch:
        patch.setattr(CausalLMModule, "on_train_epoch_end", interrupt)
        ended = run("train", *TRAIN, "hydra.run.dir=second run")
        signals.signal(signals.SIGINT, handler)  # Lightning leaves it ignored
    assert ended.status == 130
    assert "Interrupted." in ended.text
    assert "Traceback" not in ended.text
