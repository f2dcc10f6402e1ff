"""The functions of the package do what the commands do, and raise what these print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import cft
from cft.annotation.store import SHIPPED, AnnotationStore
from cft.api import _literal, _steps
from cft.config.build import ConfigError
from cft.errors import BadValue
from cft.files import write_json
from cft.run_log import RUN_LOG
from tests.conftest import ROOT
from tests.entry import FIT_ONLY
from tests.results import arm, write_run


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, cft; dir(cft); print([m for m in ('torch', 'hydra', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = cft.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_every_mistake_is_raised_at_once_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as found:
        cft.export("mask=critcal", fromat="trl", seed=-1)
    text = str(found.value)
    assert "did you mean critical" in text
    assert "did you mean format" in text
    assert "seed" in text
    with pytest.raises(ConfigError, match="-m: a flag of the command line"):
        cft.export("-m", format="trl")
    with pytest.raises(ConfigError, match="mask"):
        cft.export("mask=critical,all")  # several jobs
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value, literal",
    [
        (8, "8"),
        (1e-05, "1e-05"),
        (True, "true"),
        (None, "null"),
        ("a,b", "'a,b'"),
        ("it's", r"'it\'s'"),
        ([1, "b c"], "[1,'b c']"),
        ({"x": False}, "{x:false}"),
        (Path("/a b/c"), "'/a b/c'"),
        ("", "''"),
    ],
)
def test_a_value_of_python_is_written_as_hydra_reads_it(value: object, literal: str) -> None:
    assert _literal(value) == literal  # pyright: ignore[reportArgumentType]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    read = OverridesParser.create().parse_override(f"key={literal}").value()
    assert read == (str(value) if isinstance(value, Path) else value)


def test_a_score_from_a_program_is_the_commands_with_a_log_of_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cft score` names its score by ${hydra:runtime.choices.score}: without Hydra's job, "HydraConfig was not set"."""
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED / "tiny_arith", "annotations/few")
    rows = AnnotationStore("annotations/few").rows()[:6]
    monkeypatch.setattr(AnnotationStore, "rows", lambda self: rows)
    before = HydraConfig.instance().cfg
    folder = cft.score(score="entropy", annotation="few", annotations_dir=Path("annotations"))
    assert folder.name == "entropy"
    assert HydraConfig.instance().cfg is before
    assert not GlobalHydra.instance().is_initialized()
    (log,) = Path("outputs/score").glob(f"*/{RUN_LOG}")
    assert "Scored 6 of 6 rows" in log.read_text()


@pytest.mark.parametrize("value", [{"messages": []}, []])
def test_what_is_no_row_of_an_annotation_is_not_shown(value: object) -> None:
    with pytest.raises(
        BadValue, match=r"expected one row of an annotation, such as .*rows\(\)\[0\], found (dict|list)"
    ):
        cft.show(value)  # type: ignore[arg-type]


def test_a_pipelines_steps_are_found_with_their_results(tmp_path: Path) -> None:
    for name in ("base", "estimate-base", "sft-seed0"):
        write_run(tmp_path, name, arm("all"), seed=0, correct=[1, 0], metrics={"eval/accuracy": {"value": 0.5}})
    write_run(tmp_path, "left from before", arm("all"), seed=0, correct=[1, 0])
    for name in ("annotate", "base", "estimate-base", "sft-seed0"):
        write_json(tmp_path / "steps" / f"{name}.json", {})
    found = _steps(tmp_path)
    assert ({name: run.accuracy for name, run in found.runs.items()}, found.report, found.table()) == (
        {"base": 0.5, "sft-seed0": 0.5},
        None,
        "",
    )
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "comparison.md").write_text("| arm |")
    (tmp_path / "report" / "report.html").touch()
    assert (_steps(tmp_path).report, _steps(tmp_path).table()) == (tmp_path / "report" / "report.html", "| arm |")


def test_mistakes_of_a_comparison_are_raised_as_those_of_its_command() -> None:
    with pytest.raises(ConfigError, match="no such arm: cftt, did you mean cft"):
        cft.compare("data=rows", arms=["sft", "cftt"], seeds=2, **{"data.path": "a.jsonl"})


@pytest.mark.slow
def test_annotate_train_and_evaluate_from_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = {"data.max_steps": 2, "data.num_train": 6, "data.num_validation": 3, "data.num_test": 3}
    annotation = cft.annotate(annotation="few", limit=6, unit_size=3, **short)
    assert annotation.folder == Path("outputs/annotations/few")
    assert annotation.counts()["problems"] == 6
    assert len(list(Path("outputs/annotate").glob(f"*/{RUN_LOG}"))) == 1
    benchmark = {key.replace("data.", "benchmark."): value for key, value in short.items()}
    run = cft.train("mask=all", *FIT_ONLY, **{"data.annotation": "few", "trainer.max_epochs": 1}, **benchmark)
    assert run.folder.parent == tmp_path / "outputs" / "train"
    assert np.isnan(run.accuracy)
    (results,) = run.results.values()
    assert results.budget is not None
    again = cft.train(
        "mask=all", *FIT_ONLY, **{"data.annotation": "few", "trainer.max_epochs": 1}, **benchmark, resume=run.folder
    )
    assert again.folder == run.folder
    made = cft.export(format="trl", annotation="few", out="here it is", **benchmark)
    assert (made.folder, made.manifest["format"]) == (Path("here it is"), "trl")
    assert "loss on" in (made.folder / RUN_LOG).read_text()
    measured = cft.evaluate(checkpoint=run.folder, limit=3, num_samples=0, **benchmark)
    assert measured.results["arithmetic"].accuracy == measured.accuracy
