"""Every yaml under conf/ composes, passes the check, and names parameters that its target really has."""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import import_module
from itertools import zip_longest
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cft.config.build import CONF_DIR
from cft.config.source import resolve, signature
from cft.config.stages import STAGES
from tests.command_lines import mistakes, options
from tests.methods import OF_GROUPS


@cache
def groups_of(stage: str) -> set[str]:
    defaults = OmegaConf.to_container(OmegaConf.load(CONF_DIR / f"{stage}.yaml").defaults)
    assert isinstance(defaults, list)
    return {str(group) for entry in defaults if isinstance(entry, dict) for group in entry}


def stages_of(option: str) -> list[str]:
    """The stages that an option is for. An experiment is for the stage that its folder or its command names."""
    group, _, name = option.partition("=")
    if group == "data":  # problems to annotate, an annotation to train on, or rows of one's own
        return {"annotated": ["train"], "rows": ["train", "score"], "none": ["score"]}.get(name, ["annotate"])
    if group == "regularizer":  # a place of its own under loss.regularizers, not one of the defaults
        return ["train"]
    if group == "data/prefix":  # of annotated rows
        return ["train"]
    if group in ("model/lora", "optimizer/groups"):  # cft rl refuses adapters and groups
        return [stage for stage in STAGES if group.partition("/")[0] in groups_of(stage) and stage != "rl"]
    if group != "experiment":
        return [stage for stage in STAGES if groups_of(stage) & {group, group.split("/")[0]}]
    text = (CONF_DIR / group / f"{name}.yaml").read_text(encoding="utf-8")
    named = [stage for stage in STAGES if f"cft {stage} experiment=" in text]
    return named or ["train"]


# What meets a need that an option has beside its own keys, by the key of the message about it.
COMPANIONS = {
    "reference": "reference=initial",
    "groups": "groups=critical",
    "mask": "mask=all",
    "responses": "responses=given",
}


def left_over(stage: str, *options: str) -> list[str]:
    """The mistakes of a command line that chooses options and fills in what they leave to the user."""
    argv = [option.replace("regularizer=", "+regularizer@loss.regularizers.extra=") for option in options]
    found = {m.partition(":")[0]: m for m in mistakes(stage, *argv)}
    given = [f"{key}=placeholder" for key, m in found.items() if "has no value" in m]
    if "reference=adapter_off" in options:
        given.append("model/lora=default")
    else:
        given += [COMPANIONS[key] for key in found if key in COMPANIONS]
    if not given:
        return list(found.values())
    left = mistakes(stage, *argv, *given)  # rules are asked once every value is there
    more = [COMPANIONS[key] for m in left if (key := m.partition(":")[0]) in COMPANIONS]
    return mistakes(stage, *argv, *given, *more) if more else left


OF_RESPONSES = (*OF_GROUPS, "loss=f_divergence")
CASES = [(stage, option) for option in options() for stage in stages_of(option)]


def together() -> list[tuple[str, tuple[str, ...]]]:
    """Every option once, in one of its stages: the n-th options of all groups of a stage make one command line. An
    experiment chooses among the other groups, and stands alone; so does a reference, which some losses ask for, and a decoding
    rule, which some engines cannot apply. A pipeline has the options of many stages: those are below."""
    found: dict[tuple[str, str], list[str]] = {}
    for option in options():
        stages = stages_of(option)
        group = option.partition("=")[0]
        found.setdefault((stages[sum(map(len, found.values())) % len(stages)], group), []).append(option)
    lines = []
    for stage in STAGES:
        groups = {group: named for (of, group), named in found.items() if of == stage and group != "pipeline"}
        alone = [(option,) for group in ("experiment", "reference", "decoding") for option in groups.pop(group, [])]
        for option in OF_RESPONSES:  # with uniform weighting alone
            if option in groups.get("loss", []):
                groups["loss"].remove(option)
                alone.append((option,))
        if "data=rows" in groups.get("data", []):  # no mask that reads evidence goes with it
            groups["data"].remove("data=rows")
            alone.append(("data=rows",))
        rows = zip_longest(*groups.values())
        lines += [(stage, line) for line in (*alone, *(tuple(filter(None, row)) for row in rows))]
    return lines


@pytest.mark.pages
@pytest.mark.parametrize(("stage", "line"), together(), ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_options_compose_and_pass_the_check(stage: str, line: tuple[str, ...]) -> None:
    """What an option leaves open (???) is given a placeholder; everything else must stand."""
    assert left_over(stage, *line) == []


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "option"), CASES, ids=lambda v: v)
def test_an_option_composes_and_passes_the_check_alone(stage: str, option: str) -> None:
    assert left_over(stage, option) == []


def test_whatever_a_config_names_explains_its_arguments() -> None:
    """Class or function of cft with keys of its own: Google-style Args, which the site's reference shows."""
    named = {t for path in CONF_DIR.rglob("*.yaml") for t in re.findall(r"_target_: (cft\.[\w.]+)", path.read_text())}
    unexplained = []
    for target in sorted(named):
        definition = resolve(target)
        text, found = definition.node.docstring, signature(definition)
        keys = [p for p in found.parameters if p.keyword_only] if found else []
        if keys and "Args:" not in (text.value if text else ""):
            unexplained.append(target)
    assert unexplained == []


@pytest.mark.parametrize("stage", STAGES)
def test_the_defaults_of_a_stage_pass(stage: str) -> None:
    assert left_over(stage) == []


def test_no_option_is_an_orphan() -> None:
    assert {option for _, option in CASES} == set(options())
    assert len(options()) > 20


def test_every_group_has_options() -> None:
    folders = {f.relative_to(CONF_DIR).parts[0] for f in CONF_DIR.rglob("*.yaml") if f.parent != CONF_DIR}
    used = {group for stage in STAGES for group in groups_of(stage)} - {"experiment"}
    assert {group.split("/")[0] for group in used if not group.startswith("override ")} <= folders


def all_targets() -> list[str]:
    texts = (path.read_text(encoding="utf-8") for path in CONF_DIR.rglob("*.yaml"))
    return sorted({name for text in texts for name in re.findall(r"^[^#\n]*_target_: ([\w.]+)", text, re.MULTILINE)})


@pytest.mark.parametrize("target", all_targets())
def test_the_signature_read_from_the_source_is_the_real_one(target: str) -> None:
    """Against inspect.signature of the imported object."""
    module, _, name = target.rpartition(".")
    found = vars(import_module(module))[name]
    definition = resolve(target)
    assert definition.full_name == f"{found.__module__}.{found.__qualname__}"
    read = signature(definition)
    assert read is not None
    real = inspect.signature(found).parameters.values()
    assert [(p.name, p.keyword_only, p.required) for p in read.parameters] == [
        (p.name, p.kind is p.KEYWORD_ONLY, p.default is p.empty) for p in real
    ]
    assert not read.takes_any_keyword


def test_our_targets_take_config_by_keyword_and_the_rest_by_position() -> None:
    ours = {name: signature(resolve(name)) for name in all_targets() if name.startswith("cft.")}
    optional = {
        n: [p.name for p in read.parameters if not p.keyword_only and not p.required]
        for n, read in ours.items()
        if read
    }
    assert len(optional) == len(ours) > 50
    assert {name: found for name, found in optional.items() if found} == {}


@pytest.mark.parametrize("stage", ["annotate", "train", "evaluate"])  # those that verify
def test_composing_without_the_check_gives_the_schemas_types(stage: str) -> None:
    """hydra.main merges into the strict schema: whole numbers where shares are expected become floats."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose(stage, ["verify.timeout_s=5"])
    assert type(config.verify.timeout_s) is float
    assert OmegaConf.get_type(config, "verify") is not dict


def test_yaml_files_hold_no_prefixes_for_foreign_targets() -> None:
    for file in CONF_DIR.rglob("*.yaml"):
        tree = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert not (isinstance(tree, dict) and tree.get("allow_targets")), Path(file).name
