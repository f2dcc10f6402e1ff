"""Groups of parameters with a learning rate of their own: `optimizer.groups`, regular expressions over parameters' names.

    optimizer.groups: {head: {match: ^lm_head, lr_multiplier: 1}, rest: {match: null, lr_multiplier: 0.1}}

A name is the model's own, such as model.layers.0.self_attn.q_proj.weight, or ....q_proj.lora_A.default.weight of an adapter;
sharding and compiling leave it as it is. A pattern is looked for anywhere in it (`re.search`). Where a parameter has two names
(tied embeddings) it is in the group that either name matches. No parameter is in two groups: the groups are a mapping, in which
the order means nothing, so that two matches are an error and not a question of which is first. The group whose match is null
takes what no other matches; without it, that is trained as if there were no groups.

A multiplier scales the learning rate of every step, whatever the schedule. 0 freezes: no gradient, no optimizer state, no part
in the gradient's norm, in the checkpoints or in the estimate of memory.
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
    """The numbers of weights of the trained parameters by group and name; frozen groups and those without a parameter are left
    out. tied: the further names of parameters that are in a group of the configuration, by the first one.

    Names alone: whoever held the parameters would hold all weights on every device once their shards have taken their place.
    """

    trained: Mapping[str, Mapping[str, int]]
    frozen: Mapping[str, Mapping[str, int]]
    tied: Mapping[str, tuple[str, ...]]

    def names(self) -> dict[str, list[str]]:
        """Of the trained parameters, for the checkpoint."""
        return {group: list(parameters) for group, parameters in self.trained.items()}


def factory_of(optimizer: Part) -> OptimizerFactory:
    """What makes the optimizer of parameters, or of groups of them."""
    return build(Part({key: value for key, value in optimizer.items() if key != GROUPS}, allowed=optimizer.allowed))


def groups_of(optimizer: Part) -> dict[str, ParameterGroupConfig]:
    """By name; {} where all parameters are trained alike."""
    return {name: ParameterGroupConfig(**entry) for name, entry in (optimizer.get(GROUPS) or {}).items()}


def freeze(model: nn.Module, groups: Groups) -> Assigned | None:
    """Let the parameters of groups with multiplier 0 be; None without groups. Raises ConfigError, all errors at once.

    Before the model is shared out over processes.
    """
    if not groups:
        return None
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(BASE.sub("", name))
    trained = {parameter: called for parameter, called in names.items() if parameter.requires_grad}
    matching = {parameter: _matching(called, groups) for parameter, called in trained.items()}
    if errors := [*_of_patterns(groups, names, trained), *_of_two_groups(groups, trained, matching)]:
        raise ConfigError(*errors)
    rest = next((name for name, group in groups.items() if group.match is None), OTHERS)
    found: dict[str, dict[str, nn.Parameter]] = {name: {} for name in (*groups, rest)}
    for parameter, called in trained.items():
        found[matching[parameter][0] if matching[parameter] else rest][called[0]] = parameter
    frozen = {name: found.pop(name) for name, group in groups.items() if group.lr_multiplier == 0}
    found = {name: parameters for name, parameters in found.items() if parameters}
    if not found:
        raise ConfigError(
            ErrorDetail(KEY, "every parameter is in a group with lr_multiplier=0, so that nothing would be trained")
        )
    for parameters in frozen.values():
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    tied = {called[0]: tuple(called[1:]) for parameter, called in trained.items() if called[1:] and matching[parameter]}
    sizes = ({group: {n: p.numel() for n, p in of.items()} for group, of in part.items()} for part in (found, frozen))
    return Assigned(*sizes, tied=tied)


def optimizer_of(factory: OptimizerFactory, assigned: Assigned, groups: Groups, *, model: nn.Module) -> Optimizer:
    """Over the trained groups, each at its multiple of the factory's learning rate. Raises ConfigError.

    model: as it is trained. By name, since its parameters are others once it has been shared out over processes, or its
    weights have come from another one.
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
    """Raises ConfigError where a group asks an optimizer for a decay that it has not: torch would pass over it."""
    asking = [name for name, group in groups.items() if group.weight_decay is not None]
    if asking and "weight_decay" not in optimizer.defaults:
        raise ConfigError(
            ErrorDetail(
                f"{KEY}.{asking[0]}.weight_decay", f"{type(optimizer).__name__} has no weight decay; expected null"
            )
        )


def described(assigned: Assigned, groups: Groups) -> Iterator[str]:
    """A line for each group, for people."""
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


def _of_patterns(
    groups: Groups, names: Mapping[nn.Parameter, list[str]], trained: Mapping[nn.Parameter, list[str]]
) -> Iterator[ErrorDetail]:
    """Patterns without a parameter."""
    all_names = [name for called in names.values() for name in called]
    trained_names = [name for called in trained.values() for name in called]
    for group, config in groups.items():
        if config.match is None or any(re.search(config.match, name) for name in trained_names):
            continue
        hits = [name for name in all_names if re.search(config.match, name)]
        if hits:
            text = (
                f"{config.match!r} matches parameters that are frozen anyway, such as {hits[0]}: with model/lora the adapters "
                "alone are trained (match lora_A or lora_B), or set model.lora=null"
            )
        else:
            near = ", ".join(_nearest(config.match, trained_names))
            text = f"{config.match!r} matches no parameter of the model; the closest are {near}"
        yield ErrorDetail(f"{KEY}.{group}.match", text)


def _nearest(pattern: str, names: list[str]) -> list[str]:
    plain = re.sub(r"\\[dwsDWSbB]|[^\w.]", "", pattern.replace(r"\.", "."))
    parts: dict[str, list[str]] = {}
    for name in names:  # compared piece by piece: a pattern is seldom about a whole name
        for piece in {name, *name.split("."), name.removesuffix(".weight").rpartition(".")[2]}:
            parts.setdefault(piece, []).append(name)
    near = get_close_matches(plain, parts, n=3, cutoff=0.4)
    return list(dict.fromkeys(parts[piece][0] for piece in near))[:3] or [names[0], names[-1]]


def _of_two_groups(
    groups: Groups, trained: Mapping[nn.Parameter, list[str]], matching: Mapping[nn.Parameter, list[str]]
) -> Iterator[ErrorDetail]:
    """The first parameter of each pair of groups."""
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
                "parameter is in one group, whatever their order: narrow one of the two, or set one match to null, which takes "
                "what no other group matches",
            )
