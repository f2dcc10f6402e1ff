"""The options that make up the method of a training run, and every value that differs from its option's yaml.

An option's name identifies a method only while its values are those of its yaml; experiments and the command line can change
them. So the options are composed again without either, and the differences are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cft.config.build import redacted
from cft.config.hydra_internals import config_loader
from cft.runs.arm import METHOD, part_of
from cft.runs.run import flat, follows_seed
from cft.shipped import CONF_DIR

_SCHEMA = "structured://"


def method_choices(cfg: DictConfig, *, choices: Mapping[str, str], sources: Sequence[str]) -> dict[str, Any]:
    """Options by group, then changed values by dotted name (None = deleted).

    choices: group -> option, of the job. sources: Hydra's search path, such as file:///somewhere/conf; the package's own yaml
    files are searched last.
    """
    wanted = {name: option for name, option in choices.items() if part_of(name) in METHOD and option != "None"}
    plain, ours = _written(_as_chosen(wanted, sources=sources)), _written(cfg)
    values = flat(redacted(cfg))
    changed = {
        name: values.get(name)
        for name in sorted({*plain, *ours})
        if (name not in ours or name not in plain or plain[name] != ours[name]) and not follows_seed(ours.get(name))
    }
    order = [*METHOD, *sorted({*wanted} - {*METHOD})]
    return {name: wanted[name] for name in order if name in wanted} | changed


def _as_chosen(wanted: Mapping[str, str], *, sources: Sequence[str]) -> DictConfig:
    """train.yaml with these options and no other change."""
    files = [source for source in sources if source != _SCHEMA]
    searched = dict.fromkeys(("pkg://hydra.conf", *files, f"file://{CONF_DIR}"))
    loader = config_loader([*(("cft", source) for source in searched), ("schema", _SCHEMA)])  # the schema last
    lines = [f"{part}={wanted[part]}" for part in METHOD if part in wanted]
    while True:
        cfg = loader.load_configuration("train", overrides=list(lines), run_mode=RunMode.RUN)
        found = cfg.hydra.runtime.choices
        # An option may bring groups of its own, so existing keys are set before any is added.
        other = [f"{name}={option}" for name, option in wanted.items() if name in found and str(found[name]) != option]
        more = other or [f"+{name}={option}" for name, option in wanted.items() if name not in found][:1]
        if not more:
            return cfg
        lines += more


def _written(cfg: DictConfig) -> dict[str, Any]:
    """Values of the method as written in yaml, so that `${seed}` does not differ between runs."""
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    return {name: value for part in METHOD if part in tree for name, value in flat(tree[part], part).items()}
