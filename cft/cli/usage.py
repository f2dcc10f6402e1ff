"""`cft <stage> --help`: the stage's groups with their options, its keys with their comments, and the parts chosen beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cft.config.command_line import read_command_line
from cft.config.compose import nested
from cft.config.overrides import reason
from cft.config.stages import STAGES
from cft.shipped import CONF_DIR

_WIDTH = 120


def usage(stage: str, words: Sequence[str]) -> str:
    """The help text. words: the command line, whose overrides and config folders it reflects."""
    line = read_command_line(words, stage=stage, conf_dir=CONF_DIR)
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in line.extra_dirs)}]"]
    overrides, wrong = line.overrides, ""
    with nested(), initialize_config_dir(str(line.config_dir), version_base="1.3", job_name=stage):
        try:
            config = compose(line.config_name, [*search, *overrides], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:  # explained by the command without --help
            overrides, wrong = (), f"Without the overrides, which are not right: {reason(error)}"
            config = compose(line.config_name, search, return_hydra_config=True)
    choices = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
    folders = (line.config_dir, *line.extra_dirs)
    text = (line.config_dir / f"{line.config_name}.yaml").read_text(encoding="utf-8")
    return "\n".join(
        (
            f"{STAGES[stage].summary}",
            "",
            f"usage: cft {stage} [group=option ...] [key=value ...] [-m for several values of each]",
            "",
            *_groups(choices, folders),
            "Keys and defaults:",
            *(f"  {each}".rstrip() for each in _own_keys(text)),
            "",
            *_chosen(config, overrides, choices),
            *([wrong] if wrong else []),
            f"The whole config: cft {stage} --cfg job; of one part: --cfg job --package mask. Flags of Hydra: --hydra-help.",
        )
    )


def _groups(choices: Mapping[str, str], folders: Sequence[Path]) -> Iterator[str]:
    own = {group: option for group, option in choices.items() if not group.startswith("hydra/") and "@" not in group}
    width = max(map(len, own), default=0)
    if own:
        yield "Groups, their options and the chosen one in brackets:"
    for group, option in sorted(own.items()):
        options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        shown = ", ".join(f"[{each}]" if each == option else each for each in options)
        yield fill(shown, _WIDTH, initial_indent=f"  {group:<{width}}  ", subsequent_indent=" " * (width + 4))
    if own:
        yield ""


def _own_keys(text: str) -> list[str]:
    """The yaml of a stage without its comments at the start, its defaults list and Hydra's keys."""
    found: list[str] = []
    skipped = True
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            skipped = line.startswith(("defaults:", "hydra:"))
        if not skipped:
            found.append(line)
    while found and not found[0].strip():
        found.pop(0)
    return found


def _chosen(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]) -> Iterator[str]:
    """The composed parts of options that were chosen on the command line."""
    for override in overrides:
        group = override.partition("=")[0].lstrip("+")
        if group in choices and group in config:
            yield f"{group}={choices[group]}:"
            part = OmegaConf.to_yaml(config[group], resolve=False).rstrip()
            yield from (f"  {each}" for each in part.splitlines())
            yield ""
