"""Parameter groups with their own learning rates: `optimizer.groups`, regular expressions over parameter names.

    optimizer.groups: {head: {match: ^lm_head, lr_multiplier: 1}, rest: {match: null, lr_multiplier: 0.1}}

Names are the model's own, such as model.layers.0.self_attn.q_proj.weight, or ....q_proj.lora_A.default.weight for an adapter;
sharding and compiling do not change them. A pattern may match anywhere in the name (`re.search`). A parameter with two names
(tied embeddings) belongs to the group that matches either name. Each parameter belongs to one group: groups are a mapping
without a meaningful order, so a parameter that two groups match is an error. The group whose match is null takes all
parameters that no other group matches; without such a group, they are trained with the optimizer's own settings.

A multiplier scales the learning rate of every step, under any schedule. 0 freezes the parameters: they have no gradient and no
optimizer state, and are not part of the gradient norm, the checkpoints or the memory estimate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cft.config.build import ConfigError, build
from cft.config.check import ErrorDetail
from cft.config.parameter_groups import OTHERS
from cft.config.part import Part
from cft.config.schema import GROUPS, ParameterGroupConfig
from cft.models.adapters import BASE

KEY = f"optimizer.{GROUPS}"
Groups = Mapping[str, ParameterGroupConfig]
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


@dataclass(frozen=True, slots=True)
class Assigned:
    """The parameters of each group, by name.

    It holds names only: references to the parameters would keep the full weights on every device after sharding.

    Args:
        trained: group -> parameter name -> number of weights; without frozen groups and groups without a parameter.
        frozen: the same for the frozen groups.
        tied: first name -> further names, of the tied parameters in a configured group.
    """

    trained: Mapping[str, Mapping[str, int]]
    frozen: Mapping[str, Mapping[str, int]]
    tied: Mapping[str, tuple[str, ...]]

    def names(self) -> dict[str, list[str]]:
        """Names of the trained parameters by group, for the checkpoint."""
        return {group: list(parameters) for group, parameters in self.trained.items()}


def factory_of(optimizer: Part) -> OptimizerFactory:
    """Factory that builds the optimizer from parameters, or from groups of them."""
    return build(Part({key: value for key, value in optimizer.items() if key != GROUPS}, allowed=optimizer.allowed))


def groups_of(optimizer: Part) -> dict[str, ParameterGroupConfig]:
    """The configured groups by name; {} if there are none."""
    return {name: ParameterGroupConfig(**entry) for name, entry in (optimizer.get(GROUPS) or {}).items()}


def freeze(model: nn.Module, groups: Groups) -> Assigned | None:
    """Assign parameters to groups and freeze those of groups with multiplier 0. Call it before the model is sharded.

    Returns:
        The assignment; None without groups.

    Raises:
        ConfigError: all errors in the groups at once.
    """
    if not groups:
        return None
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(BASE.sub("", name))
    trained = {parameter: called for parameter, called in names.items() if parameter.requires_grad}
    matching = {parameter: _matching(called, groups) for parameter, called in trained.items()}
    if errors := [*_pattern_errors(groups, names, trained), *_overlap_errors(groups, trained, matching)]:
        raise ConfigError(*errors)
    rest = next((name for name, group in groups.items() if group.match is None), OTHERS)
    found: dict[str, dict[str, nn.Parameter]] = {name: {} for name in (*groups, rest)}
    for parameter, called in trained.items():
        found[matching[parameter][0] if matching[parameter] else rest][called[0]] = parameter
    frozen = {name: found.pop(name) for name, group in groups.items() if group.lr_multiplier == 0}
    found = {name: parameters for name, parameters in found.items() if parameters}
    if not found:
        raise ConfigError(
            ErrorDetail(KEY, "every parameter is in a group with lr_multiplier=0, so nothing would be trained")
        )
    for parameters in frozen.values():
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    tied = {called[0]: tuple(called[1:]) for parameter, called in trained.items() if called[1:] and matching[parameter]}
    sizes = ({group: {n: p.numel() for n, p in of.items()} for group, of in part.items()} for part in (found, frozen))
    return Assigned(*sizes, tied=tied)


def optimizer_of(factory: OptimizerFactory, assigned: Assigned, groups: Groups, *, model: nn.Module) -> Optimizer:
    """Build the optimizer of the trained groups, each with its multiple of the factory's learning rate.

    Args:
        factory: builds the optimizer from parameter groups.
        assigned: result of `freeze`.
        groups: the configured groups.
        model: the model as it is trained. Parameters are looked up by name, since sharding, or receiving weights from another
            process, replaces the parameter objects.

    Raises:
        ConfigError: a group sets a weight decay that the optimizer does not support.
    """
    here = {BASE.sub("", name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    settings = []
    for name, parameters in assigned.trained.items():
        decay = groups[name].weight_decay if name in groups else None
        own = {} if decay is None else {"weight_decay": decay}
        settings.append({"params": [here[called] for called in parameters], "name": name, **own})
    optimizer = factory(settings)
    require_weight_decay(optimizer, groups)
    for group in optimizer.param_groups:
        if group["name"] in groups:
            group["lr"] = group["lr"] * groups[group["name"]].lr_multiplier
    return optimizer


def require_weight_decay(optimizer: Optimizer, groups: Groups) -> None:
    """Raises ConfigError if a group sets a weight decay that the optimizer does not support: torch would ignore it."""
    asking = [name for name, group in groups.items() if group.weight_decay is not None]
    if asking and "weight_decay" not in optimizer.defaults:
        raise ConfigError(
            ErrorDetail(
                f"{KEY}.{asking[0]}.weight_decay", f"{type(optimizer).__name__} has no weight decay; expected null"
            )
        )


def described(assigned: Assigned, groups: Groups) -> Iterator[str]:
    """Lines for the console that describe each group."""
    for name, parameters in (*assigned.trained.items(), *assigned.frozen.items()):
        multiplier = groups[name].lr_multiplier if name in groups else 1.0
        how = f"learning rate x {multiplier:g}" if multiplier else "frozen"
        weights = sum(parameters.values())
        yield f"Parameter group {name}: {how}, {weights:,} weights in {len(parameters)} parameters"
        for called in parameters:
            if further := assigned.tied.get(called):
                yield f"  {called} is {', '.join(further)} too (tied): one parameter, in this group"


def _matching(called: list[str], groups: Groups) -> list[str]:
    return [
        name
        for name, group in groups.items()
        if group.match is not None and any(re.search(group.match, one) for one in called)
    ]


def _pattern_errors(
    groups: Groups, names: Mapping[nn.Parameter, list[str]], trained: Mapping[nn.Parameter, list[str]]
) -> Iterator[ErrorDetail]:
    """Errors of patterns that match no trained parameter."""
    all_names = [name for called in names.values() for name in called]
    trained_names = [name for called in trained.values() for name in called]
    for group, config in groups.items():
        if config.match is None or any(re.search(config.match, name) for name in trained_names):
            continue
        hits = [name for name in all_names if re.search(config.match, name)]
        if hits:
            text = (
                f"{config.match!r} matches only frozen parameters, such as {hits[0]}: with model/lora, only the adapters are "
                "trained (match lora_A or lora_B), or set model.lora=null"
            )
        else:
            near = ", ".join(_nearest(config.match, trained_names))
            text = f"{config.match!r} matches no parameter of the model; the closest are {near}"
        yield ErrorDetail(f"{KEY}.{group}.match", text)


def _nearest(pattern: str, names: list[str]) -> list[str]:
    plain = re.sub(r"\\[dwsDWSbB]|[^\w.]", "", pattern.replace(r"\.", "."))
    parts: dict[str, list[str]] = {}
    for name in names:  # compared with parts of the names, since a pattern rarely covers a whole name
        for piece in {name, *name.split("."), name.removesuffix(".weight").rpartition(".")[2]}:
            parts.setdefault(piece, []).append(name)
    near = get_close_matches(plain, parts, n=3, cutoff=0.4)
    return list(dict.fromkeys(parts[piece][0] for piece in near))[:3] or [names[0], names[-1]]


def _overlap_errors(
    groups: Groups, trained: Mapping[nn.Parameter, list[str]], matching: Mapping[nn.Parameter, list[str]]
) -> Iterator[ErrorDetail]:
    """One error for each pair of groups that match the same parameter."""
    said = set()
    for parameter, called in trained.items():
        pair = tuple(matching[parameter][:2])
        if len(pair) == 2 and pair not in said:
            said.add(pair)
            first, second = pair
            tied = f" (tied to {', '.join(called[1:])})" if called[1:] else ""
            yield ErrorDetail(
                f"{KEY}.{second}.match",
                f"{called[0]}{tied} is matched by {groups[second].match!r} and by {groups[first].match!r} of group {first}; a "
                "parameter must be in one group: narrow one of the two patterns, or set one match to null, which takes all "
                "parameters that no other group matches",
            )
