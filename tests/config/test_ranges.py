"""Every number of a method has a range; the config check and the constructor agree on it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from omegaconf import DictConfig, OmegaConf

from cft.config.annotations import type_of
from cft.config.build import CONF_DIR
from cft.config.check import check_node
from cft.config.command_line import CommandLine, command_line_errors, read_command_line
from cft.config.source import resolve, signature
from cft.errors import BadValue
from cft.ranges import has_range

TRIED = (-math.inf, -1.0, -1e-9, 0.0, 0.5, 1.0, 1.5, math.inf, math.nan)


def nodes_of(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for inner in tree.values():
            yield from nodes_of(inner)


def whole(file: Path) -> DictConfig:
    """An option with those of its group that it starts from."""
    own = OmegaConf.load(file)
    from_ = [name for name in own.pop("defaults", []) if isinstance(name, str) and name != "_self_" and "@" not in name]
    return OmegaConf.merge(*(whole(file.with_name(f"{name}.yaml")) for name in from_), own)  # pyright: ignore


def methods() -> dict[str, dict[str, Any]]:
    """Every node by its target, as the options of the groups give it."""
    found = {}
    for group in ("weighting", "loss", "regularizer"):
        for file in sorted((CONF_DIR / group).glob("*.yaml")):
            tree = OmegaConf.to_container(whole(file), resolve=False)
            found |= {node["_target_"]: node for node in nodes_of(tree)}
    return {target: node for target, node in found.items() if target != "cft.losses.Objective"}


def numbers_of(target: str) -> dict[str, Any]:
    taken = signature(resolve(target))
    assert taken is not None
    hints = {p.name: type_of(p.annotation) for p in taken.parameters if p.annotation is not None}
    return {name: hint for name, hint in hints.items() if {int, float} & set(scalars_of(hint))}


def scalars_of(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, UnionType, Annotated):
        for inner in get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint):
            yield from scalars_of(inner)
    else:
        yield hint


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    return methods()


def test_every_number_of_a_method_has_a_range(known: dict[str, dict[str, Any]]) -> None:
    numbers = [(target, name, hint) for target in known for name, hint in numbers_of(target).items()]
    assert [f"{target}.{name}" for target, name, hint in numbers if not has_range(hint)] == []
    assert len(numbers) >= 25


def test_the_config_check_and_the_constructor_share_a_range(known: dict[str, dict[str, Any]]) -> None:
    for target, node in known.items():
        for name in numbers_of(target):
            share_a_range(target, name, node)


def share_a_range(target: str, name: str, node: dict[str, Any]) -> None:
    module, _, qualname = target.rpartition(".")
    made = vars(importlib.import_module(module))[qualname]
    others = {key: value for key, value in node.items() if not key.startswith("_")}
    others |= {"lowest": 0.0, "highest": 1.0} if "lowest" in others else {}
    whole = int in scalars_of(numbers_of(target)[name])
    for value in (int(v) if whole and v in (-1.0, 0.0, 1.0) else v for v in TRIED):
        arguments = {**others, name: value}
        found = [str(m) for m in check_node({"_target_": target, **arguments}, path="")]
        if whole and isinstance(value, float) and math.isfinite(value):
            assert found  # a wrong type, which is not the constructor's to check
        elif found:
            assert found[0].startswith(f"{name}: expected ")
            with pytest.raises(BadValue, match=rf"^{qualname}\.{name}: expected .*, found "):
                made(**arguments)
        else:
            assert math.isfinite(value)
            made(**arguments)


OUT_OF_RANGE = [
    ("weighting=focal weighting.gamma=-2 loss=power loss.token_loss.exponent=-0.5",
     "weighting.gamma loss.token_loss.exponent"),
    ("weighting=probability weighting.exponent=-1 loss=gem loss.token_loss.beta=0",
     "weighting.exponent loss.token_loss.beta"),
    ("weighting=eaft weighting.exponent=-1 weighting.scale=0 loss=sed loss.regularizers.sed.token_loss.tau=-1",
     "weighting.exponent weighting.scale loss.regularizers.sed.token_loss.tau"),
    ("weighting=profit weighting.threshold=5 loss=sft_go groups=tfidf loss.aggregation.weight.initial=9",
     "weighting.threshold loss.aggregation.weight.initial"),
    ("weighting=sstoken weighting.gamma=2 reference=annotation loss=nll_entropy "
     "loss.regularizers.entropy.coefficient.initial=-0.1",
     "weighting.gamma loss.regularizers.entropy.coefficient.initial"),
    ("weighting=iw_sft weighting.largest=-1 reference=annotation loss=sft_go groups=tfidf "
     "loss.aggregation.weight.final=1.5", "weighting.largest loss.aggregation.weight.final"),
    ("weighting=thresholded weighting.lowest=0.9 weighting.highest=0.5 loss=nll_entropy "
     "loss.regularizers.entropy.coefficient.final=nan",
     "weighting.lowest loss.regularizers.entropy.coefficient.final"),
    ("weighting=product weighting.factors.second.scale=0 mask=complement mask@mask.of=complement "
     "mask.of.of.num_alternatives=0", "weighting.factors.second.scale mask.of.of.num_alternatives"),
]  # fmt: skip


QUICK = (0, 4, 7)  # a number of a weighting, of each part of a loss, of a mask and inside of other objects


@pytest.mark.parametrize(
    ("line", "keys"),
    [pytest.param(*case, marks=() if i in QUICK else pytest.mark.slow) for i, case in enumerate(OUT_OF_RANGE)],
)
def test_settings_that_train_another_method_are_refused_by_their_full_paths(line: str, keys: str) -> None:
    found = [str(m) for m in command_line_errors(read(line), stage="train")]
    assert sorted(m.partition(":")[0] for m in found) == sorted(keys.split())
    assert all(": expected " in m and ", found " in m for m in found)


def test_all_settings_out_of_range_are_reported_at_once_in_every_job_of_a_sweep() -> None:
    line = "-m weighting=high_entropy weighting.fraction=0.5,1.5 loss=gem loss.token_loss.beta=0.7,-1 optimizer.lr=nan"
    found = [str(m) for m in command_line_errors(read(line), stage="train")]
    assert [m.split(":")[0] for m in found] == ["optimizer.lr", "weighting.fraction", "loss.token_loss.beta"]


def read(line: str) -> CommandLine:
    return read_command_line(line.split(), stage="train", conf_dir=CONF_DIR)
