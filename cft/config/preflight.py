"""What a sound config asks for and this machine does not have, found before the heavy imports: seconds, not a load later.

missing_inputs      annotation, run to resume, accelerator, package          in each job (`config.py`)
unwritable          the output folder, which Hydra makes before the job      on the command line (`command_line.py`)
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cft.config.needs import GIVEN_ROWS, strings, target_of
from cft.config.rules import RAY

ROWS_IN_FILES = (GIVEN_ROWS, "cft.data.sources.jsonl")


def missing_inputs(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, what is not there) of a config without errors."""
    trainer, data, resume = tree.get("trainer"), tree.get("data"), tree.get("resume")
    fleet = tree.get("fleet")
    if isinstance(fleet, Mapping) and fleet.get("_target_") == RAY and importlib.util.find_spec("ray") is None:
        install = "pip install 'critical-token-finetuning[ray]'"
        yield "fleet", f"ray needs the package ray, which is not installed: {install}, or choose fleet=none"
    if "grpo" in tree and importlib.util.find_spec("trl") is None:
        yield "grpo", "needs the package trl, which is not installed: pip install 'critical-token-finetuning[rl]'"
    if isinstance(trainer, Mapping) and (text := _no_accelerator(trainer.get("accelerator"))):
        yield "trainer.accelerator", text
    if isinstance(data, Mapping) and data.get("_target_") == "cft.data.annotated.annotated_rows":
        name, annotations_dir = str(data.get("annotation")), str(tree.get("annotations_dir"))
        if text := _no_annotation(name, annotations_dir=annotations_dir):
            yield f"data.annotation={name}", text
    rates = tree.get("pass_rates")
    if isinstance(rates, Mapping) and rates.get("annotation"):
        name, annotations_dir = str(rates["annotation"]), str(tree.get("annotations_dir"))
        if text := _no_annotation(name, annotations_dir=annotations_dir):
            yield f"pass_rates.annotation={name}", text
    if isinstance(data, Mapping) and data.get("_target_") == "cft.data.rows.given_rows":
        from cft.data.row_files import not_there

        for key in ("path", "validation_path"):
            if (path := str(data.get(key) or "")) and (text := not_there(path)):
                yield f"data.{key}={path}", text
    for key in ("data", "benchmark"):
        if isinstance(node := tree.get(key), Mapping) and (text := _faults(node, tree)):
            yield f"{key}.path", text
    if isinstance(resume, str) and resume not in ("", "auto") and not (Path(resume) / "config.yaml").is_file():
        config = Path(resume) / "config.yaml"
        yield f"resume={resume}", f"no {config}; expected the folder of a run that cft train started, or auto"


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


def _faults(node: Mapping[str, object], tree: Mapping[str, object]) -> str:
    """What is wrong with the rows of the user's files."""
    if target_of(node) not in ROWS_IN_FILES:
        return ""
    from cft.data.first_look import faults

    loss = tree.get("loss")
    aggregation = target_of(loss.get("aggregation")) if isinstance(loss, Mapping) else None
    about = strings(aggregation, "about") if aggregation else None
    chat = target_of(tree.get("prompt")) != "cft.prompts.chat.Plain"
    return faults(node, annotated="responses" in tree, compared="groups" in (about or ()), chat=chat)


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
