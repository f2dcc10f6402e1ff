"""Every command of README and docs passes the check, every file that they show works, every path that they name exists."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cft.cli import report
from cft.config.check import named
from cft.config.command_line import command_line_errors, read_command_line
from cft.config.source import TargetError, resolve
from cft.config.stages import STAGES
from cft.shipped import CONF_DIR
from tests.command_lines import representatives
from tests.conftest import ROOT
from tests.docs.pages import PAGES, Command, blocks, commands, files, lines_of_code, name_of, read

COMMANDS = commands()
WRONG_ON_PURPOSE = [command for command in COMMANDS if "critcal" in command.text]
CHECKED = [command for command in COMMANDS if command.stage in STAGES and command not in WRONG_ON_PURPOSE]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with conf/ and the files that pages show beside it, importable from there."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(CONF_DIR, folder / "conf")
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:  # another test's
        del sys.modules[name]
    yield folder
    sys.path.remove(str(folder))


def mistakes(command: Command, *, conf: Path) -> list[str]:
    before = STAGES[command.stage].arguments
    argv = named(before)(command.argv) if before else command.argv
    line = read_command_line(argv, stage=command.stage, conf_dir=conf)
    return [str(m) for m in line.errors or command_line_errors(line, stage=command.stage)]


def installed(distribution: str) -> bool:
    return any(importlib.metadata.distributions(name=distribution))


def test_the_pages_have_commands_of_every_stage() -> None:
    assert {command.stage for command in COMMANDS} == {*STAGES, "report"}
    assert len(CHECKED) > 60
    assert {command.stage for command in COMMANDS if command.page == "README.md"} >= {"annotate", "train", "evaluate"}


def few() -> list[Command]:
    """Those that hold every setting of every page."""
    by_argv = {(c.stage, tuple(c.argv)): c for c in CHECKED}
    return [by_argv[stage, tuple(argv)] for stage, argv in representatives(by_argv)]


def passes(command: Command, conf: Path) -> None:
    launcher = re.search(r"hydra/launcher=(joblib|submitit)", command.text)
    if launcher and not installed(f"hydra-{launcher.group(1)}-launcher"):
        pytest.skip(f"the {launcher.group(1)} launcher is not installed")
    assert mistakes(command, conf=conf) == []


@pytest.mark.pages
@pytest.mark.parametrize("command", few(), ids=lambda c: f"{c.page}: {c.text}")
def test_a_command_passes_the_check(command: Command, project: Path) -> None:
    passes(command, project / "conf")


@pytest.mark.slow
@pytest.mark.parametrize("command", {c.text: c for c in CHECKED}.values(), ids=lambda c: f"{c.page}: {c.text}")
def test_each_command_passes_the_check(command: Command, project: Path) -> None:
    passes(command, project / "conf")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.stage == "report"], ids=lambda c: f"{c.page}: {c.text}")
def test_a_report_command_is_accepted(command: Command) -> None:
    report._parser().parse_args(command.argv)  # leaves by SystemExit where it is not


def test_the_report_of_mistakes_is_the_real_one() -> None:
    text = read(ROOT / "README.md")
    (command,) = [c for c in WRONG_ON_PURPOSE if c.page == "README.md"]
    found = mistakes(command, conf=CONF_DIR)
    assert len(found) > 1
    for mistake in found:
        assert mistake in text


# --- new parts


def new_tests() -> list[str]:
    return [name for name in files() if name.startswith("tests/")]


def test_every_kind_of_new_part_is_shown_with_its_test() -> None:
    kinds = {match[1] for name in files() if (match := re.match(r"conf/(\w+)/", name))}
    assert kinds == {"mask", "weighting", "loss", "verifier", "benchmark", "decoding", "engine", "pipeline"}
    assert len(new_tests()) == 5  # a benchmark is a yaml, and the engine is the reader's


@pytest.mark.parametrize("page", ["mask", "weighting", "loss", "verifier", "benchmark", "decoding"])
def test_a_new_part_is_as_short_as_is_said(page: str) -> None:
    shown = [b for b in blocks(read(ROOT / "docs" / "extend" / f"{page}.md")) if re.match(r"# \S+/\S+\n", b)]
    lines = sum(bool(line.strip()) for block in shown for line in block.splitlines()[1:])
    stated = re.search(
        rf"^\| {page} \|.*?\| (\d) files?, (\d+) lines", read(ROOT / "docs" / "extend" / "index.md"), re.M
    )
    assert stated
    assert (len(shown), lines) == (int(stated[1]), int(stated[2]))


@pytest.mark.parametrize("name", new_tests())
def test_the_test_of_a_new_part_passes(name: str, project: Path) -> None:
    spec = importlib.util.spec_from_file_location(Path(name).stem, project / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [value for key, value in vars(module).items() if key.startswith("test_")]
    assert tests
    for test in tests:
        test()


# --- names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_and_targets_exist(page: Path) -> None:
    """Files of the repository in code spans, modules of experiments/, targets of make, links of pages outside the site."""
    text, code = read(page), lines_of_code(read(page))
    named = [
        span
        for span in re.findall(r"`((?:cft|conf|tests|docs|experiments)/[a-z0-9_./-]*)`", text)
        if span not in files()
    ]
    assert [path for path in named if not (ROOT / path).exists()] == []
    modules = [m for line in code for m in re.findall(r"python -m experiments\.(\w+)", line)]
    assert [name for name in modules if not (ROOT / "experiments" / f"{name}.py").is_file()] == []
    tests = [m for line in code for m in re.findall(r"pytest (tests/\S+)", line)]
    assert [path for path in tests if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {m for line in code for m in re.findall(r"^\s*make ([a-z0-9-]+)", line)} <= targets
    if page.name == "README.md":
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_dotted_names_exist(page: Path) -> None:
    """Names of the package in code spans and references: `cft.masks.Critical`, [...][cft.masks.base]."""
    named = set(re.findall(r"[`\[](cft(?:\.\w+)+)[`\]]", read(page)))
    assert [name for name in sorted(named) if not is_defined(name)] == []


def test_paths_in_the_source_exist() -> None:
    """`cft/masks/critical.py` in a comment or a docstring."""
    named = {path for file in (ROOT / "cft").rglob("*.py") for path in re.findall(r"\bcft/[\w/]+\.py", read(file))}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def is_defined(name: str) -> bool:
    try:
        resolve(name)
    except TargetError:  # a module is no target of a configuration
        path = ROOT.joinpath(*name.split("."))
        return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
    return True


def test_a_dotted_name_that_does_not_exist_is_noticed() -> None:
    assert [name for name in ("cft.masks.Critcal", "cft.mask", "cft.masks.base.Critical") if is_defined(name)] == []


def test_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 250


def test_groups_and_options_of_the_readme_exist() -> None:
    groups = {folder.name: {file.stem for file in folder.glob("*.yaml")} for folder in CONF_DIR.iterdir()}
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| `cft", read(ROOT / "README.md"), re.MULTILINE)
    assert len(rows) > 8
    for name, text in rows:
        named = set(re.findall(r"`([\w.-]+)`", text))
        assert named <= groups[name], name
        if more := re.search(r"and (\d+) more", text):
            assert len(named) + int(more[1]) == len(groups[name])


def test_every_package_has_its_place_on_the_map() -> None:
    packages = {folder.name for folder in (ROOT / "cft").iterdir() if (folder / "__init__.py").is_file()}
    for page in ("README.md", "docs/design/architecture.md"):
        text = read(ROOT / page)
        assert [name for name in packages if not re.search(rf"\b{name}\b", text)] == [], page
