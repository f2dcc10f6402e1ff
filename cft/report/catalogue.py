"""The methods that cft train composes, read from conf/ and the classes behind it: python -m cft.report.catalogue

For every mask, grouping, weighting, loss and regularizer: description, needs, defaults, source, the experiment that sets up the
published method, and the command that trains with it. Nothing on the page is written by hand: names and remarks come from the
yaml, needs and sources from the code. The command sets the experiment's mask, weighting, loss, reference and groups; without an
experiment it adds mask=all and whatever the needs require.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cft.annotation.store import SHIPPED, AnnotationStore
from cft.config.build import CONF_DIR, build
from cft.config.compose import composed_tree, composing
from cft.config.needs import stored_scores
from cft.config.saved import read_yaml
from cft.config.source import resolve
from cft.masks import Critical, CriticalSampled, Turning
from cft.masks.base import Mask
from cft.runs.run import flat
from cft.scores.column import GROUP, REFERENCE_DISTRIBUTION, REFERENCE_LOGPROB
from cft.scores.store import annotating_model, command_for

GROUPS = {
    "mask": "Masks: which response tokens carry loss",
    "weighting": "Weightings: how much each counts",
    "loss": "Losses and aggregations",
    "regularizer": "Regularizers: further terms, each with its own tokens, count and coefficient",
    "groups": "Groupings: for losses that compare groups of tokens",
    "inputs": "Inputs: what the model reads in training",
}
_SOURCE = re.compile(r"(?:arXiv[: ]*)?\b(\d{4}\.\d{5})\b")
_PLAIN = ("_target_", "_partial_", "chunk_tokens")
_UNSET = "???"
METHOD = ("mask", "weighting", "loss", "groups", "inputs", "reference")  # the groups that make up a method
COMPLETE, SAMPLES, WRONG = "a complete annotation", "sampled evidence", "an annotation of wrong responses"
ROLLOUTS = "rollouts: right and wrong responses of a problem"
_EVIDENCE = {  # evidence that a mask needs: in words, overrides that produce it, further overrides of the training
    COMPLETE: ("graded", "short_circuit=false limit=400", ()),
    SAMPLES: ("sampled", "evidence=sampled limit=100", ()),
    WRONG: ("mistakes", "responses=wrong limit=400", ("data.responses=wrong",)),
    ROLLOUTS: ("rollouts", "responses=rollouts num_samples=8 limit=400", ()),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One option of one group. needs: inputs beyond the prompt and response. experiment: file of conf/experiment with the
    published method; "" if there is none. overrides: of a cft train command that meets the needs. before: commands to run
    first. missing: keys without a default, which the user must set."""

    group: str
    option: str
    what: str
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    sources: tuple[str, ...]
    experiment: str
    overrides: tuple[str, ...]
    before: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.group}={self.option}"

    @property
    def command(self) -> str:
        return " ".join(["cft train", *self.overrides, *(f"{key}=..." for key in self.missing)])


@cache
def entries() -> tuple[Entry, ...]:
    """Every option of every group, in the order of GROUPS and of their names."""
    with composing():
        plain = flat(composed_tree("train", []).written["loss"])
        published = _published()
        return tuple(
            _entry(group, file, plain_loss=plain, published=published)
            for group in GROUPS
            for file in sorted((CONF_DIR / group).glob("*.yaml"))
        )


@dataclass(frozen=True, slots=True)
class _Experiment:
    """options: its choices among METHOD. overrides: these choices and the values that it sets in them."""

    name: str
    options: Mapping[str, str]
    overrides: tuple[str, ...]


def _published() -> list[_Experiment]:
    """Experiments that name a paper, those with fewer choices first."""
    found = []
    for file in sorted((CONF_DIR / "experiment").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        if not _SOURCE.findall(text):
            continue
        tree = read_yaml(file)
        chosen = {
            group.removeprefix("override /"): str(option)
            for line in tree.get("defaults", [])
            if isinstance(line, dict)
            for group, option in line.items()
        }
        options = {group: chosen[group] for group in METHOD if group in chosen}
        settings = flat({group: tree[group] for group in METHOD if group in tree})
        found.append(
            _Experiment(file.stem, options, tuple(f"{key}={value}" for key, value in {**options, **settings}.items()))
        )
    return sorted(found, key=lambda experiment: (len(experiment.overrides), experiment.name))


def _experiment_of(group: str, option: str, published: list[_Experiment]) -> _Experiment | None:
    """The experiment for an option: the one with the fewest other choices."""
    return next((one for one in published if one.options.get(group) == option), None)


def _entry(group: str, file: Path, *, plain_loss: Mapping[str, Any], published: list[_Experiment]) -> Entry:
    option = file.stem
    chosen = f"+regularizer@loss.regularizers.{option}={option}" if group == "regularizer" else f"{group}={option}"
    experiment = _experiment_of(group, option, published)
    overrides = experiment.overrides if experiment else ("mask=all", chosen) if group != "mask" else (chosen,)
    # The option's own settings stay as its file has them.
    tree = composed_tree("train", [override for override in overrides if not override.startswith(f"{group}.")])
    values = flat(tree.written["loss"]["regularizers"][option] if group == "regularizer" else tree.written[group])
    missing = tuple(f"{group}.{key}" for key, value in values.items() if value == _UNSET)
    needs = () if missing else _needs(tree.resolved)
    if not experiment:
        overrides = (*overrides, *_met(needs, group=group, option=option))
    elif ROLLOUTS in needs:  # the data is no part of a method, and the shipped annotation has right responses alone
        overrides = (*overrides, "data.annotation=rollouts")
    reference = flat({"reference": tree.written["reference"]})
    missing = (*missing, *(key for key, value in reference.items() if value == _UNSET and key not in overrides))
    settings = {key: value for key, value in values.items() if not key.endswith(_PLAIN) and value != _UNSET}
    if group == "loss":
        settings = {key: value for key, value in settings.items() if plain_loss.get(key) != value}
    text = file.read_text(encoding="utf-8")
    documents = [text, *(_docstring(target) for target in _targets(values))]
    return Entry(
        group,
        option,
        remark(text) or documents[1].split("\n\n")[0].replace("\n", " "),
        needs,
        settings,
        tuple(dict.fromkeys(_SOURCE.findall(text) or _SOURCE.findall(" ".join(documents)))),
        experiment.name if experiment else "",
        overrides,
        tuple(_before(tree.resolved, needs)),
        missing,
    )


def _needs(tree: Mapping[str, Any]) -> tuple[str, ...]:
    objective, mask, groups = build(tree["loss"])(build(tree["weighting"])), build(tree["mask"]), build(tree["groups"])
    rows = {ROLLOUTS} if objective.rejected else set()
    return tuple(sorted({*objective.needs, *mask.needs, *groups.needs, *_evidence(mask), *rows}))


def _evidence(mask: Mask) -> set[str]:
    """Evidence that the mask needs and an annotation does not have by default."""
    if isinstance(mask, Turning):
        return {WRONG}
    if isinstance(mask, CriticalSampled):
        return {SAMPLES}
    # Annotation may not stop at the first right alternative.
    return {COMPLETE} if isinstance(mask, Critical) and mask.rule != "all" else set()


def _before(tree: Mapping[str, Any], needs: tuple[str, ...]) -> Iterator[str]:
    """Commands that add what the configuration reads to the annotation that ships with the package."""
    for name, made, _ in (_EVIDENCE[need] for need in needs if need in _EVIDENCE):
        yield f"cft annotate annotation={name} {made}"
    shipped = str(tree["data"]["annotation"])
    annotation = _EVIDENCE[ROLLOUTS][0] if ROLLOUTS in needs else shipped
    for name in sorted(stored_scores(tree)):
        yield command_for(name, annotation, model=annotating_model(AnnotationStore(SHIPPED / shipped).manifest()))


def _met(needs: tuple[str, ...], *, group: str, option: str) -> Iterator[str]:
    """Overrides that meet the needs in the cheapest way."""
    for name, _, further in (_EVIDENCE[need] for need in needs if need in _EVIDENCE):
        yield from (f"data.annotation={name}", *further)
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
    docstring = resolve(target).node.docstring
    return inspect.cleandoc(docstring.value) if docstring else ""


def remark(text: str) -> str:
    """The comment that a yaml opens with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def document() -> str:
    """The page on methods, in markdown."""
    parts = [
        "# Methods",
        "",
        "Generated from `conf/` and the code. Any mask can be combined with any weighting, loss and regularizer; several "
        "weightings multiply (`weighting=product`), and regularizers add up. The mask is `critical` by default, so the "
        "commands of other methods say `mask=all`. *Experiment* is the file of `conf/experiment` that sets up the published "
        "method with the budget it states; the command has the method alone. RUN_FOLDER is the folder of a training, "
        "CLASSIFIER that of a token classifier, `...` something that only you can name.",
        "",
        "`loss.normalizer` is what the sum over the tokens of a step is divided by: `critical` (tokens with loss), `response` "
        "(all response tokens), `sequence` (rows) or `problem` (groups of rows, for losses that compare responses). There is "
        "no plain sum: its learning rate would depend on the number of tokens in a step.",
    ]
    for group, title in GROUPS.items():
        parts += ["", f"## {title}"]
        for entry in entries():
            if entry.group == group:
                parts += _section(entry)
    return "\n".join(parts) + "\n"


def _section(entry: Entry) -> list[str]:
    defaults = " ".join(f"`{key}={value}`" for key, value in entry.defaults.items())
    sources = ", ".join(f"[arXiv {source}](https://arxiv.org/abs/{source})" for source in entry.sources)
    experiment = f"[{entry.experiment}](../conf/experiment/{entry.experiment}.yaml)" if entry.experiment else ""
    facts = {"Needs": ", ".join(entry.needs), "Defaults": defaults, "Source": sources, "Experiment": experiment}
    return [
        "",
        f"### {entry.option} {{ #{entry.group}-{entry.option} }}",
        "",
        entry.what,
        "",
        *(f"- {name}: {value}" for name, value in facts.items() if value),
        "",
        "```bash",
        *(*entry.before, entry.command),
        "```",
    ]


if __name__ == "__main__":
    print(document(), end="")
