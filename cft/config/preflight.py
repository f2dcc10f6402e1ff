"""What a sound config asks for and this machine does not have, found before the heavy imports: seconds, not a load later.

missing_inputs      model, checkpoint, annotation, files of problems, run to resume, accelerator, package     in each job
unwritable          the output folder, which Hydra makes before the job      on the command line (`command_line.py`)
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cft.config.needs import GIVEN_ROWS, strings, target_of
from cft.config.rules import NO_ROWS, RAY
from cft.files import LARGEST_READ_AHEAD

_SOURCES = ("cft.data.sources.", "cft.benchmarks.")


def missing_inputs(
    tree: Mapping[str, object], *, unreadable: Callable[[str, str], str] | None = None
) -> Iterator[tuple[str, str]]:
    """(key, what is not there) of a config without errors. Problems and models on the hub are not looked up.

    unreadable: `unreadable_problems`, if the configs of several steps should read each file once with a cache.
    """
    unreadable = unreadable or unreadable_problems
    trainer, data, resume = tree.get("trainer"), tree.get("data"), tree.get("resume")
    fleet = tree.get("fleet")
    if isinstance(fleet, Mapping) and fleet.get("_target_") == RAY and importlib.util.find_spec("ray") is None:
        install = "pip install 'critical-token-finetuning[ray]'"
        yield "fleet", f"ray needs the package ray, which is not installed: {install}, or choose fleet=none"
    if "grpo" in tree and importlib.util.find_spec("trl") is None:
        yield "grpo", "needs the package trl, which is not installed: pip install 'critical-token-finetuning[rl]'"
    if isinstance(trainer, Mapping) and (text := _no_accelerator(trainer.get("accelerator"))):
        yield "trainer.accelerator", text
    for key, name in _annotations(tree):
        if text := _no_annotation(name, annotations_dir=str(tree.get("annotations_dir"))):
            yield f"{key}={name}", text
    if isinstance(data, Mapping) and target_of(data) == GIVEN_ROWS:
        from cft.data.row_files import not_there

        for key in ("path", "validation_path"):
            if (path := str(data.get(key) or "")) and (text := not_there(path)):
                yield f"data.{key}={path}", text
    yield from _missing_model(tree)
    for key in ("data", "benchmark"):
        node = tree.get(key)
        of_problems = isinstance(node, Mapping) and str(node.get("_target_")).startswith(_SOURCES)
        if of_problems and (text := unreadable(json.dumps(node, sort_keys=True), key)):
            yield "", text
    if isinstance(data, Mapping) and target_of(data) == GIVEN_ROWS and (text := _faulty_rows(data, tree)):
        yield "data.path", text
    if isinstance(resume, str) and resume not in ("", "auto") and not (Path(resume) / "config.yaml").is_file():
        config = Path(resume) / "config.yaml"
        yield f"resume={resume}", f"no {config}; expected the folder of a run that cft train started, or auto"


def _annotations(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, name) of the annotations that are read."""
    data, rates = tree.get("data"), tree.get("pass_rates")
    source = data.get("_target_") if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and source == "cft.data.annotated.annotated_rows":
        yield "data.annotation", str(data.get("annotation"))
    if "score" in tree and source == NO_ROWS:
        yield "annotation", str(tree.get("annotation"))
    if isinstance(rates, Mapping) and rates.get("annotation"):
        yield "pass_rates.annotation", str(rates["annotation"])


def _missing_model(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The checkpoint, which replaces the model, or the model."""
    from cft.models.files import path_problem
    from cft.runs.run import NO_WEIGHTS, weights_folder

    checkpoint, model = tree.get("checkpoint"), tree.get("model")
    if isinstance(checkpoint, str) and checkpoint:
        if weights_folder(checkpoint) is None:
            yield f"checkpoint={checkpoint}", NO_WEIGHTS
    elif isinstance(model, Mapping) and (text := path_problem(str(model.get("path", "")))):
        yield f"model.path={model['path']}", text
    teacher = reference.get("model") if isinstance(reference := tree.get("reference"), Mapping) else None
    if isinstance(teacher, Mapping) and (text := path_problem(str(teacher.get("path", "")))):
        yield f"reference.model.path={teacher['path']}", text


def unreadable_problems(node: str, key: str) -> str:
    """Why the problems of a source in local files cannot be used, "" if they can. node: JSON of the source's config."""
    from cft.config.build import build
    from cft.data.problem_rows import ProblemError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skipped rows are reported when the stage reads them
            for source in _local_sources(json.loads(node)):
                build(source)
    except ProblemError as error:
        text = str(error)
        return text.replace("data.", f"{key}.", 1) if text.startswith(("data.path", "data.test_path")) else text
    return ""


def _local_sources(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sources within a node that read small local files; others are on the hub, generated, or take long to read."""
    if node["_target_"] == "cft.benchmarks.suite":
        for member in node["members"].values():
            yield from _local_sources(member)
    elif node["_target_"] == "cft.data.sources.jsonl":
        files = [Path(node[name]).expanduser() for name in ("path", "test_path") if node[name]]
        if sum(file.stat().st_size for file in files if file.is_file()) <= LARGEST_READ_AHEAD:
            yield node
    elif node.get("dir"):
        yield node


def unwritable(folder: str) -> str:
    """Why the output folder cannot be made or written to, "" where it can: tried in the nearest folder that is there."""
    if not folder.strip():
        return "expected a folder, found empty text"
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".cft-"):
            return ""
    except OSError as error:
        return f"{folder} cannot be made ({error.strerror}: {place}); choose a folder that can be written to"


def _faulty_rows(data: Mapping[str, object], tree: Mapping[str, object]) -> str:
    """What is wrong with the user's rows in local files."""
    from cft.data.first_look import faults

    loss = tree.get("loss")
    aggregation = target_of(loss.get("aggregation")) if isinstance(loss, Mapping) else None
    about = strings(aggregation, "about") if aggregation else None
    chat = target_of(tree.get("prompt")) != "cft.prompts.chat.Plain"
    return faults(data, annotated="responses" in tree, compared="groups" in (about or ()), chat=chat)


def _no_accelerator(accelerator: object) -> str:
    if accelerator not in ("gpu", "cuda", "mps"):
        return ""
    import torch  # heavy, so only where it is needed; the training imports it next

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there.get(str(accelerator), any(there.values())):
        return ""
    build = "" if torch.backends.cuda.is_built() else f", and torch {torch.__version__} is built without CUDA"
    return f"{accelerator} was requested, but this machine has none{build}; use trainer=default, or cpu"


def _no_annotation(name: str, *, annotations_dir: str) -> str:
    from cft.annotation.store import (  # Parquet takes a moment, which other stages need not wait
        StoreError,
        find_annotation,
    )

    try:
        find_annotation(name, annotations_dir=annotations_dir)
    except StoreError as error:
        return str(error).removeprefix(f"data.annotation={name}: ")
    return ""
