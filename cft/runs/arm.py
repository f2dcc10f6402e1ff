"""Which arm of a comparison a run is: what tells it from other runs but for the seed.

The method's part of it are the options of mask, weighting, loss, reference and groups, the options inside them
(`mask@mask.of: numeric`, `regularizer@loss.regularizers.kl: sed`), and every value that is not the option's own. An
option's name stands for a method only while its values are those of its yaml; an experiment's yaml changes them as well
as the command line. So the options are composed again without either, and what differs is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cft.config.build import CONF_DIR, redacted
from cft.config.hydra_internals import config_loader
from cft.runs.run import RunContext, flat, follows_seed

METHOD = ("mask", "weighting", "loss", "reference", "groups")
# What a comparison asks for first; stated of every run, so that a value at its default can be told from another.
ARM_KEYS = ("model", "data.annotation", *METHOD, "loss.normalizer", "optimizer.lr", "trainer.max_epochs")
_SCHEMA = "structured://"
# Overrides that say where a run lives or which repetition it is, not what it does.
_NOT_AN_ARM = ("seed", "resume", "annotations_dir", "data.dir", "allow_targets", "experiment")


def arm_of(cfg: DictConfig, context: RunContext, keys: Sequence[str]) -> dict[str, Any]:
    """The options or values of the keys, the method if they are a training's, and every further override."""
    arm: dict[str, Any] = {}
    for key in keys:
        choice = context.choices.get(key)
        arm[key] = choice if choice is not None else OmegaConf.select(cfg, key)
    training = "mask" in keys
    if training:
        chosen = method_choices(cfg, choices=context.choices, sources=context.sources)
        arm |= {name: value for name, value in chosen.items() if name not in arm}
    for override in context.overrides:
        name, _, value = override.lstrip("+~").partition("=")
        group = name.split("@")[0]
        if training and part_of(name) in METHOD:
            continue
        if name not in _NOT_AN_ARM and group.split(".")[0] != "logger" and group not in arm:
            arm[name] = value
    return arm


def spoken(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What names and tags say of an arm: model, mask, weighting, and the loss where it is not the usual one."""
    told = {key: arm[key] for key in ("model", "mask", "weighting") if arm.get(key) is not None}
    return told if arm.get("loss", "nll") == "nll" else told | {"loss": arm["loss"]}


def method_choices(cfg: DictConfig, *, choices: Mapping[str, str], sources: Sequence[str]) -> dict[str, Any]:
    """Options by group, then changed values by dotted name (None: it was deleted).

    choices: group -> option, of the job. sources: where Hydra looks for yaml files; ours are looked at last.
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


def part_of(name: str) -> str:
    """The part of the config that an override, a setting or a choice is about: `model@reference.model` -> reference."""
    group, _, package = name.partition("@")
    return (package or group).split(".")[0]


def _as_chosen(wanted: Mapping[str, str], *, sources: Sequence[str]) -> DictConfig:
    """train.yaml with these options and no other change."""
    files = [source for source in sources if source != _SCHEMA]
    searched = dict.fromkeys(("pkg://hydra.conf", *files, f"file://{CONF_DIR}"))
    loader = config_loader(
        [*(("cft", source) for source in searched), ("schema", _SCHEMA)]
    )  # Hydra wants the schema last
    lines = [f"{part}={wanted[part]}" for part in METHOD if part in wanted]
    while True:
        cfg = loader.load_configuration("train", overrides=list(lines), run_mode=RunMode.RUN)
        found = cfg.hydra.runtime.choices
        # An option may bring groups of its own, so what is there is set before anything is added.
        other = [f"{name}={option}" for name, option in wanted.items() if name in found and str(found[name]) != option]
        more = other or [f"+{name}={option}" for name, option in wanted.items() if name not in found][:1]
        if not more:
            return cfg
        lines += more


def _written(cfg: DictConfig) -> dict[str, Any]:
    """Values of the method as they stand in yaml: `${seed}` is no change from one run to the next."""
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    return {name: value for part in METHOD if part in tree for name, value in flat(tree[part], part).items()}
