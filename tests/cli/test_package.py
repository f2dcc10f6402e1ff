"""What `pip install` brings: a wheel with configs and assets that works without a checkout, and true lower bounds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from packaging.requirements import Requirement
from packaging.version import Version

from cft import __version__
from cft.cli.main import COMMANDS, main
from cft.config.schema import keys_of
from cft.config.stages import STAGES
from cft.shipped import CONF_DIR
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Every stage with its defaults, and every file of every group, from the installed layout.
COMPOSE = """
import sys
from pathlib import Path
import cft
from hydra import compose, initialize_config_dir
from cft.config.build import ConfigError, checked
from cft.config.stages import STAGES
from cft.shipped import CONF_DIR

package = Path(cft.__file__).parent
assert CONF_DIR == package / "conf", CONF_DIR
with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
    for stage in STAGES:
        try:
            checked(compose(stage), stage)
        except ConfigError as error:
            # An extra such as rl, or a value that only a user knows.
            needed = ("is not installed", "has no value; give it with")
            assert all(any(text in line for text in needed) for line in str(error).splitlines()), error
    files = [file for file in CONF_DIR.rglob("*.yaml") if file.parent != CONF_DIR]
    for file in files:
        if file.parent.name == "experiment":
            compose("train", [f"experiment={file.stem}"])
        else:
            compose(file.relative_to(CONF_DIR).with_suffix("").as_posix())
assert not {"torch", "transformers"} & set(sys.modules)
print(package, len(files))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(folder), str(ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_code_configs_and_assets(wheel: Path) -> None:
    assert wheel.name.startswith(f"critical_token_finetuning-{__version__}-")
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    expected = {f"cft/conf/{file.relative_to(CONF_DIR).as_posix()}" for file in CONF_DIR.rglob("*.yaml")}
    own = [file for file in (ROOT / "cft").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    expected |= {file.relative_to(ROOT).as_posix() for file in own}
    assert "cft/assets/tiny_arith/model.safetensors" in expected
    assert "cft/assets/annotations/tiny_arith/manifest.json" in expected
    assert {name for name in names if ".dist-info/" not in name} == expected
    (scripts,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert "cft = cft.cli.main:main" in scripts.splitlines()
    for file in CONF_DIR.rglob("*.yaml"):
        assert archive.read(f"cft/conf/{file.relative_to(CONF_DIR).as_posix()}") == file.read_bytes()


@pytest.mark.slow  # 30 experiments
def test_every_config_composes_from_the_installed_layout(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPOSE], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    files = sum(1 for file in CONF_DIR.rglob("*.yaml") if file.parent != CONF_DIR)
    assert done.stdout.split() == [str(site / "cft"), str(files)]
    assert list(elsewhere.iterdir()) == []


def test_an_editable_install_is_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy of the configs, which would go stale."""
    from hatchling.build import build_editable

    monkeypatch.chdir(ROOT)
    archive = zipfile.ZipFile(tmp_path / build_editable(str(tmp_path)))
    (path_file,) = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert archive.read(path_file).decode().split() == [str(ROOT)]


def test_a_checkout_uses_the_configs_at_its_top() -> None:
    assert CONF_DIR == ROOT / "conf"
    assert not (ROOT / "cft" / "conf").exists()


def requirements() -> list[Requirement]:
    """Of the package and of what its tests need, extras of its own resolved."""
    extras = PROJECT["optional-dependencies"]
    wanted, found = [*PROJECT["dependencies"], *extras["test"]], []
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name == PROJECT["name"]:
            wanted += [line for extra in requirement.extras for line in extras[extra]]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("requirement", sorted(requirements(), key=str), ids=lambda r: r.name)
def test_the_lowest_environment_holds_each_lower_bound(requirement: Requirement) -> None:
    """`make test-lowest` runs the tests in it."""
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonical(name): Version(version) for name, _, version in (line.partition("==") for line in lines) if version
    }
    (lowest,) = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==")]
    assert pins[canonical(requirement.name)] == lowest


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_extra_has_code_behind_it() -> None:
    """An extra is named by a message, a config or a target of the Makefile, or is made of others."""
    files = [
        ROOT / "Makefile",
        ROOT / "mkdocs.yml",
        *(ROOT / "cft").rglob("*.py"),
        *(ROOT / "experiments").rglob("*.py"),
    ]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for extra, lines in PROJECT["optional-dependencies"].items():
        made_of_others = all(Requirement(line).name == PROJECT["name"] for line in lines)
        plugin = all(Requirement(line).name.startswith("hydra-") for line in lines)  # found by Hydra itself
        assert made_of_others or plugin or f"[{extra}]" in text or f"{PROJECT['name']}[{extra}]" in text, extra


# ---- the command


def test_the_command_alone_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"]):
        assert main(argv) == 0
        text = capsys.readouterr().out
        for name in ("annotate", "train", "evaluate", "score", "export", "push", "report"):
            assert re.search(rf"^  {name} +\S", text, re.MULTILINE), name
    assert set(COMMANDS) == {*STAGES, "labels", "report", "completion"}


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cft {__version__}\n"


def test_an_unknown_command_is_a_mistake_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("cft: no command 'trian', did you mean train?")


def test_the_list_of_commands_needs_no_heavy_import() -> None:
    code = (
        "import sys; from cft.cli.main import main; main([])\n"
        "print([m for m in ('torch', 'transformers', 'lightning', 'matplotlib', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_what_exists(stage: str) -> None:
    """A module of the package and a function in it, conf/<stage>.yaml with the stage's schema and name."""
    entry = STAGES[stage]
    for target in filter(None, (entry.run, entry.arguments)):
        module, _, function = target.partition(":")
        file = ROOT / f"{module.replace('.', '/')}.py"
        assert re.search(rf"^def {function}\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    text = (CONF_DIR / f"{stage}.yaml").read_text(encoding="utf-8")
    assert f"- {stage}_schema\n" in text
    assert f"hydra:\n  job:\n    name: {stage}\n" in text


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_stage_names_its_groups_and_keys(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(STAGES[stage].summary)
    for key in keys_of(STAGES[stage].schema).values():
        group = key.node and not key.many
        assert re.search(rf"^  {key.name}{' ' if group else ':'}", text, re.MULTILINE) or key.many, key.name


def test_labels_is_short_for_an_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labels", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(STAGES["export"].summary)
    assert re.search(r"^  format +.*\[labels\]", text, re.MULTILINE)


def test_the_help_of_a_command_line_with_an_error_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mask=critcal", "--help"]) == 0
    text = capsys.readouterr().out
    assert "[critical], " in text
    assert "Without the overrides, which are not right: " in text


def test_configs_of_ones_own_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From --config-dir, and a --config-path that is meant from the current folder."""
    (tmp_path / "mine" / "mask").mkdir(parents=True)
    (tmp_path / "mine" / "mask" / "own.yaml").write_text("_target_: cft.masks.Prefix\nnum_tokens: 3\n")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "export.yaml").write_text("defaults:\n  - export_schema\n  - _self_\nout: here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cft"])
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # put back: --cfg leaves it set
    assert main(["train", "--config-dir", "mine", "mask=own", "--help"]) == 0
    text = capsys.readouterr().out
    assert "\nmask=own:\n  _target_: cft.masks.Prefix\n  num_tokens: 3\n" in text
    assert " [own], " in text
    assert main(["export", "--config-path", "whole", "--cfg", "job"]) == 0
    assert "out: here" in capsys.readouterr().out
