"""The page on methods has every option, and each of its commands is one that the check accepts."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cft.config.build import CONF_DIR
from cft.config.stages import STAGES
from cft.report.catalogue import GROUPS, METHOD, document, entries
from tests.command_lines import mistakes, representatives

OPTIONS = [f"{group}={file.stem}" for group in GROUPS for file in sorted((CONF_DIR / group).glob("*.yaml"))]
COMMAND = re.compile(rf"^cft ({'|'.join(STAGES)}) (.*)$", re.MULTILINE)


@pytest.mark.pages
def test_every_option_has_a_section() -> None:
    assert {entry.name for entry in entries()} == set(OPTIONS)


@cache
def documented() -> list[tuple[str, str]]:
    """(stage, arguments) of every command in the document, as it stands there."""
    return list(dict.fromkeys(COMMAND.findall(document())))


def as_typed() -> list[tuple[str, Sequence[str]]]:
    """As a shell reads them. `...` is left to the user, who gives something."""
    return [(stage, [word.replace("=...", "=x") for word in shlex.split(text)]) for stage, text in documented()]


@pytest.mark.pages
def test_commands_of_the_document_pass_the_check() -> None:
    for stage, argv in representatives(as_typed()):
        assert mistakes(stage, *argv) == [], argv


@pytest.mark.slow
def test_each_command_of_the_document_passes_the_check() -> None:
    for stage, argv in as_typed():
        assert mistakes(stage, *argv) == [], argv


@pytest.mark.pages
def test_no_command_holds_what_a_shell_takes_for_its_own() -> None:
    assert [arguments for _, arguments in documented() if set("<>;|&$") & set(arguments)] == []


@pytest.mark.pages
def test_every_options_command_is_in_the_document() -> None:
    assert {entry.command for entry in entries()} <= {f"cft {stage} {rest}" for stage, rest in documented()}


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def method(cfg: DictConfig) -> dict[str, Any]:
    return {group: OmegaConf.to_container(cfg[group]) for group in METHOD}


@pytest.mark.pages
def test_a_command_is_the_method_of_its_experiment() -> None:
    """Mask, weighting, loss, groups and reference, with all their settings."""
    published = [entry for entry in entries() if entry.experiment]
    assert len(published) > 20
    for entry in published:
        assert method(composed(*entry.overrides)) == method(composed(f"experiment={entry.experiment}")), entry.name


@pytest.mark.pages
def test_a_method_other_than_cft_trains_on_all_tokens() -> None:
    """mask=critical is the default, under which another loss would be a mixture of two methods."""
    assert [e.name for e in entries() if e.group != "mask" and "mask=all" not in e.overrides] == []


@pytest.mark.pages
def test_published_methods_have_their_experiment() -> None:
    found = {entry.name: entry.experiment for entry in entries()}
    expected = {"mask=all": "sft", "mask=critical": "cft", "mask=key_span": "sftkey", "mask=numeric": "cft_numeric"}
    expected |= {"weighting=probability": "dft", "weighting=excess_loss": "rho1", "weighting=propagation": "ift"}
    expected |= {"loss=asft": "asft", "loss=sft_go": "sft_go", "loss=nll_entropy": "", "groups=critical": ""}
    assert {name: found[name] for name in expected} == expected


def test_what_rho1_compares_with_is_no_copy_of_the_policy() -> None:
    """With reference=annotation, the model before training, nearly all excess losses would be 0."""
    reference = composed("experiment=rho1").reference
    assert (reference._target_, reference.name) == ("cft.references.Score", "reference")


@pytest.mark.pages
def test_graded_labels_ask_for_a_complete_annotation() -> None:
    (entry,) = [entry for entry in entries() if entry.name == "mask=critical_graded"]
    assert entry.needs == ("a complete annotation",)
    assert entry.before == ("cft annotate annotation=graded short_circuit=false limit=400",)
    assert "data.annotation=graded" in entry.overrides


ROWS = re.compile(r"(\d+) rows per step")


def experiments_that_promise_rows() -> list[Path]:
    return [file for file in sorted((CONF_DIR / "experiment").glob("*.yaml")) if ROWS.search(file.read_text())]


def test_experiments_that_promise_rows_are_found() -> None:
    """Otherwise the next test would have no cases once the comments are reworded."""
    assert {"dft", "ift", "upft"} <= {file.stem for file in experiments_that_promise_rows()}


@pytest.mark.parametrize("file", experiments_that_promise_rows(), ids=lambda file: file.stem)
def test_rows_a_step_are_those_of_one_process_and_the_file_says_so(file: Path) -> None:
    cfg, text = composed(f"experiment={file.stem}"), file.read_text(encoding="utf-8")
    batch, accumulate = cfg.data.batch_size, cfg.trainer.accumulate_grad_batches
    found = ROWS.search(text)
    assert found
    assert batch * accumulate == int(found[1])
    assert f"{found[1]} = {batch} x {accumulate} with one process" in text


NAMED = re.compile(rf"(?<!/)\b({'|'.join((*GROUPS, 'reference', 'score'))})=([a-z][a-z0-9_]*)\b")


def prose() -> Iterator[tuple[str, str]]:
    """(file, text) of every docstring and message in the package and every remark in conf/."""
    for file in sorted((CONF_DIR.parent / "cft").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield file.name, node.value
    for file in sorted(CONF_DIR.rglob("*.yaml")):
        yield file.name, " ".join(re.findall(r"#(.*)", file.read_text(encoding="utf-8")))


def test_options_that_texts_name_exist() -> None:
    wrong = [
        f"{file}: {group}={option}"
        for file, text in prose()
        for group, option in NAMED.findall(text)
        if not (CONF_DIR / group / f"{option}.yaml").is_file()
    ]
    assert wrong == []


@pytest.mark.pages
def test_a_method_says_what_it_is() -> None:
    assert [entry.name for entry in entries() if len(entry.what) <= 10 or "\n" in entry.what] == []
