"""What the README says is so: its commands pass the config check, its code runs, its tree and its numbers are real."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from cft.annotation.kinds import count_kinds, token_texts
from cft.annotation.rows import ROW_SCHEMA
from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import CONF_DIR
from cft.config.command_line import command_line_mistakes, read_command_line
from cft.config.stages import STAGES
from cft.masks.base import Critical, mask_weights
from cft.report.catalogue import GROUPS
from cft.report.explorer import OUTCOME_WORDS
from cft.types import AnnotatedResponse, Outcome
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
MOST_LINES = 30  # of a new mask or weighting: class, yaml and test together


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section {title!r}"
    return found.group(1)


SCRIPTS = [name for name in STAGES if (ROOT / f"{name}.py").is_file()]  # the same from a checkout
COMMAND = re.compile(rf"cft ({'|'.join(STAGES)})(?= |$)|python ({'|'.join(SCRIPTS)})\.py(?= |$)")


def stage_of(command: str) -> str:
    match = COMMAND.match(command)
    return (match[1] or match[2]) if match else ""


def commands() -> list[str]:
    """Every shell command that starts a stage: lines of a block, behind a prompt or not, and spans within the text."""
    lines = [line.removeprefix("$ ").strip() for _, text in BLOCKS for line in text.splitlines()]
    outside = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    found = [*lines, *re.findall(r"`([^`\n]+)`", outside)]
    return [command for command in found if stage_of(command)]


def files() -> dict[str, str]:
    """Code blocks that begin with the path of the file they are: path -> text."""
    found = [re.match(r"# (\S+/\S+\.(?:py|yaml))\n", text) for _, text in BLOCKS]
    return {match.group(1): text for match, (_, text) in zip(found, BLOCKS, strict=True) if match}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with conf/ and the README's own files beside it, importable from there."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(CONF_DIR, folder / "conf")
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def mistakes(command: str, *, conf: Path) -> list[str]:
    stage, argv = stage_of(command), shlex.split(command, comments=True)[2:]
    line = read_command_line(argv, stage=stage, conf_dir=conf)
    return [str(m) for m in line.mistakes or command_line_mistakes(line, stage=stage)]


def installed(distribution: str) -> bool:
    return any(importlib.metadata.distributions(name=distribution))


WRONG_ON_PURPOSE = [c for c in commands() if "critcal" in c]


@pytest.mark.xfail(strict=True, reason="the README shows the score and label commands under their old names")
def test_the_readme_has_commands_of_every_stage() -> None:
    stages = [stage_of(command) for command in commands()]
    assert set(stages) == set(STAGES)
    assert len(stages) > 25


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(commands()) if c not in WRONG_ON_PURPOSE])
def test_a_command_passes_the_check(command: str, project: Path) -> None:
    launcher = re.search(r"hydra/launcher=(joblib|submitit)", command)
    if launcher and not installed(f"hydra-{launcher.group(1)}-launcher"):
        pytest.skip(f"the {launcher.group(1)} launcher is not installed")
    assert mistakes(command, conf=project / "conf") == []


def test_the_report_of_mistakes_is_the_real_one() -> None:
    (command,) = WRONG_ON_PURPOSE
    found = mistakes(command, conf=CONF_DIR)
    assert len(found) > 1
    for mistake in found:
        assert mistake in README


def test_every_group_and_option_is_named() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section("Swap a part"), re.MULTILINE)
    groups = {folder.name: {file.stem for file in folder.glob("*.yaml")} for folder in CONF_DIR.iterdir()}
    groups = {name: options for name, options in groups.items() if options}
    assert {name for name, _ in rows} == groups.keys()
    for name, text in rows:
        named = set(re.findall(r"`([\w.-]+)`", text)) - (
            {"critical", "response", "sequence"} if name == "loss" else set()
        )
        if name == "model":
            more = int(re.findall(r"and (\d+) more", text)[0])
            assert named < groups[name]
            assert len(named) + more == len(groups[name])
        elif name in GROUPS:  # docs/methods.md has them all, made from the code
            assert named <= groups[name], name
        else:
            assert named == groups[name], name


def test_new_strategies_are_short_and_complete() -> None:
    for kind, name in (("mask", "surprising"), ("weighting", "unknown")):
        blocks = [text for _, text in re.findall(r"^```(\w*)\n(.*?)^```$", section(f"Add a {kind}"), re.M | re.S)]
        written = [text for text in blocks if re.match(r"# \S+/\S+\n", text)]
        assert len(written) == 3
        code = [line for text in written for line in text.splitlines()[1:] if line.strip()]
        assert len(code) < MOST_LINES
        assert f"conf/{kind}/{name}.yaml" in files()


@pytest.mark.parametrize("test", [name for name in files() if name.startswith("tests/")])
def test_the_tests_of_new_strategies_pass(test: str, project: Path) -> None:
    """In a process of its own, as a user would run them, the repository's tests/fakes.py at hand."""
    paths = os.pathsep.join([str(project), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--import-mode=importlib", str(project / test)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_yaml_of_a_new_mask_builds_the_mask(project: Path) -> None:
    """Of a shipped response it picks the tokens that the annotating model gave less than one half."""
    node = OmegaConf.to_container(OmegaConf.load(project / "conf" / "mask" / "surprising.yaml"))
    assert isinstance(node, dict)
    module, _, name = str(node.pop("_target_")).rpartition(".")
    mask = vars(importlib.import_module(module))[name](**node)
    one = next(row for row in shipped() if (row.logprob < np.log(0.5)).any())
    weights = mask_weights(mask, one)
    assert [t for t, w in enumerate(weights) if w > 0] == [t for t, x in enumerate(one.logprob) if np.exp(x) < 0.5]


# --- the tree


def tree() -> list[str]:
    """Paths of the architecture's tree, in order, read from its indentation."""
    text = next(text for _, text in BLOCKS if "\ncft/\n" in text)
    paths: list[str] = []
    parents: list[str] = []
    for line in text.splitlines():
        name = line.split()[0]
        if name == "#":
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        parents = parents[:depth]
        paths.append("/".join([*parents, name.rstrip("/")]))
        if name.endswith("/"):
            parents.append(name.rstrip("/"))
        elif not name.startswith("__init__"):
            assert len(line.split()) > 1, f"no purpose: {line}"
    return paths


def test_the_tree_names_every_file_once() -> None:
    named = tree()
    assert [path for path, count in Counter(named).items() if count > 1] == []
    assert [path for path in named if not (ROOT / path).exists()] == []
    real = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cft").rglob("*.py")}
    assert real - set(named) == set()


# --- links and targets


def test_links_lead_to_files_of_the_repository() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []
    tests = re.findall(r"`(tests/\w+\.py)`", README)
    assert [name for name in tests if not (ROOT / name).exists()] == []
    assert tests


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z0-9-]+)(?=[` ]|$)", README, re.MULTILINE)) <= targets | {"it"}


# --- numbers about the shipped annotation


_ROWS: list[AnnotatedResponse] = []


def shipped() -> list[AnnotatedResponse]:
    if not _ROWS:
        _ROWS.extend(AnnotationStore(SHIPPED / "tiny_arith").rows())
    return _ROWS


def test_the_numbers_about_the_shipped_annotation() -> None:
    rows = shipped()
    mask = Critical()
    share = {kind.kind: kind.critical / kind.tokens for kind in count_kinds(rows, mask=mask)}
    whole = np.concatenate([mask(row) for row in rows]).mean()
    stated = (
        f"In the {len(rows):,} responses of the annotation that ships with the package {whole:.1%} of the tokens are "
        f"critical: {share['operator']:.0%} of the operators, {share['digit']:.0%} of the digits, {share['word']:.0%} of "
        "the words."
    ).replace("%", " %")
    assert stated in " ".join(README.split())


def example() -> AnnotatedResponse:
    problem = re.search(r"problem: \*(.*?)\*\)", " ".join(README.split()))
    assert problem
    return next(row for row in shipped() if row.problem == problem.group(1))


def test_the_example_is_a_shipped_response_with_its_critical_tokens() -> None:
    row = example()
    shown = ""
    for text, weight in zip(token_texts(row), Critical()(row), strict=True):
        word = text.strip()
        shown += " " + (f"**{word}**" if weight > 0 else word) if word else ""
    # Words and punctuation close up; the tokens of a number stay apart.
    shown = re.sub(r" ([.,;])", r"\1", shown).strip()
    assert f"> {shown}\n" in README


def test_the_alternatives_of_the_example_are_the_stored_ones(tiny_arith_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_arith_path)
    row = example()
    texts = [text.strip() for text in token_texts(row)]
    stated = re.findall(r"^\| `(\S+)` \(first\) \| ([\d.]+) \| (.*?) \| (.*?) \| (not )?critical \|$", README, re.M)
    assert len(stated) == 2
    for name, probability, *cells, negation in stated:
        t = texts.index(name)
        assert f"{np.exp(row.logprob[t]):.3f}" == probability
        assert bool(Critical()(row)[t]) is (not negation)
        for k, cell in enumerate(cells):
            outcome = Outcome(int(row.alt_outcome[t, k]))
            alternative = tokenizer.decode([int(row.alt_ids[t, k])]).strip()
            tried = f"`{alternative}` → {row.alt_answer[t][k]}, {OUTCOME_WORDS[outcome]}"
            assert cell == ("not tried" if outcome == Outcome.UNTRIED else tried)


def test_the_table_of_outcomes_has_every_code() -> None:
    codes = re.findall(r"^\| (-?\d) \| (\w[\w ]*\w)", section("The method, exactly"), re.MULTILINE)
    assert {int(code): words for code, words in codes} == {int(o): OUTCOME_WORDS[o] for o in Outcome}


def test_the_table_of_columns_has_every_field() -> None:
    table = re.findall(r"^\| (`[^|]*`) \|", section("An annotation on disk"), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(table))) == sorted(ROW_SCHEMA.names)
