"""The methods that train.py composes, read from conf/ and the classes behind it: python -m cft.catalogue

Writes docs/methods.md: for every mask, grouping, weighting, loss and regulariser what it is, what it needs, its defaults,
its source and the command that trains with it. Nothing in the table is written by hand: names and remarks are the yaml's,
needs and sources the code's, and the command is completed by what the needs ask for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import cft.schema  # noqa: F401  (registers the schemas that conf/train.yaml names)
from cft.columns import GROUP, REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB
from cft.config import CONF_DIR, build
from cft.runs import flat
from cft.scores import command_for
from cft.targets import resolve

DOCUMENT = CONF_DIR.parent / "docs" / "methods.md"
GROUPS = {
    "mask": "Masks: which response tokens carry loss",
    "weighting": "Weightings: how much each counts",
    "loss": "Losses and aggregations",
    "regularizer": "Regularisers: further terms, each with its own tokens, count and coefficient",
    "groups": "Groupings: for losses that compare groups of tokens",
}
_SOURCE = re.compile(r"(?:arXiv[: ]*)?\b(\d{4}\.\d{5})\b")
_PLAIN = ("_target_", "_partial_", "chunk_tokens")
_UNSET = "???"


@dataclass(frozen=True, slots=True)
class Entry:
    """One option of one group. needs: what must come from outside the prompt and response. overrides: a train.py command
    line that meets them. before: commands that must have run. missing: keys without a default, which the user gives."""

    group: str
    option: str
    what: str
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    sources: tuple[str, ...]
    overrides: tuple[str, ...]
    before: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.group}={self.option}"

    @property
    def command(self) -> str:
        return " ".join(["python train.py", *self.overrides, *(f"{key}=..." for key in self.missing)])


def entries() -> list[Entry]:
    """Every option of every group, in the order of GROUPS and of their names."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        plain = flat(_composed([]).loss)
        return [
            _entry(group, file, plain_loss=plain)
            for group in GROUPS
            for file in sorted((CONF_DIR / group).glob("*.yaml"))
        ]


def _entry(group: str, file: Path, *, plain_loss: Mapping[str, Any]) -> Entry:
    option = file.stem
    chosen = f"+regularizer@loss.regularizers.{option}={option}" if group == "regularizer" else f"{group}={option}"
    cfg = _composed([chosen])
    node = cfg.loss.regularizers[option] if group == "regularizer" else cfg[group]
    values = flat(OmegaConf.to_container(node, resolve=False))
    missing = tuple(f"{group}.{key}" for key, value in values.items() if value == _UNSET)
    needs = () if missing else _needs(cfg)
    settings = {key: value for key, value in values.items() if not key.endswith(_PLAIN) and value != _UNSET}
    if group == "loss":
        settings = {key: value for key, value in settings.items() if plain_loss.get(key) != value}
    text = file.read_text(encoding="utf-8")
    documents = [text, *(_docstring(target) for target in _targets(values))]
    return Entry(
        group,
        option,
        _remark(text) or documents[1].split("\n\n")[0].replace("\n", " "),
        needs,
        settings,
        tuple(dict.fromkeys(_SOURCE.findall(text) or _SOURCE.findall(" ".join(documents)))),
        (chosen, *_met(needs, group=group, option=option)),
        tuple(command_for(name, "tiny_arith") for name in _scores(needs)),
        missing,
    )


def _composed(overrides: list[str]) -> DictConfig:
    return compose("train", overrides=overrides)


def _needs(cfg: DictConfig) -> tuple[str, ...]:
    objective, mask, groups = build(cfg.loss)(build(cfg.weighting)), build(cfg.mask), build(cfg.groups)
    return tuple(sorted({*objective.needs, *mask.needs, *groups.needs}))


def _scores(needs: tuple[str, ...]) -> list[str]:
    return [need for need in needs if need not in (GROUP, REFERENCE_LOGPROB, REFERENCE_DISTRIBUTION)]


def _met(needs: tuple[str, ...], *, group: str, option: str) -> Iterator[str]:
    """Overrides that meet the needs in the cheapest way."""
    if group == "groups" and option != "none":
        yield "loss=sft_go"
    if GROUP in needs:
        yield "groups=critical"
    if REFERENCE_DISTRIBUTION in needs:
        yield "reference=initial"
    elif REFERENCE_LOGPROB in needs:
        yield "reference=annotation"


def _targets(values: Mapping[str, Any]) -> list[str]:
    return [value for key, value in values.items() if key.split(".")[-1] == "_target_"]


def _docstring(target: str) -> str:
    node = resolve(target).node
    return (ast.get_docstring(node) or "") if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else ""


def _remark(text: str) -> str:
    """The comment that a yaml opens with, up to an empty line or the first key."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def document() -> str:
    """docs/methods.md."""
    found = entries()
    parts = [
        "# Methods",
        "",
        "Generated by `python -m cft.catalogue` from conf/ and the code. Any mask goes with any weighting, loss and "
        "regulariser; several weightings multiply (`weighting=product`), and regularisers add up.",
    ]
    for group, title in GROUPS.items():
        parts += [
            "",
            f"## {title}",
            "",
            "| option | what | needs | defaults | source | command |",
            "|---|---|---|---|---|---|",
        ]
        parts += [_row(entry) for entry in found if entry.group == group]
    return "\n".join(parts) + "\n"


def _row(entry: Entry) -> str:
    defaults = " ".join(f"`{key}={value}`" for key, value in entry.defaults.items())
    sources = ", ".join(f"[{source}](https://arxiv.org/abs/{source})" for source in entry.sources)
    commands = "<br>".join(f"`{command}`" for command in (*entry.before, entry.command))
    cells = (f"`{entry.option}`", entry.what, ", ".join(entry.needs), defaults, sources, commands)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    print(f"{DOCUMENT.relative_to(CONF_DIR.parent)}: {len(entries())} options")
