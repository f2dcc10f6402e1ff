"""The files of a folder that may be published: those of an annotation, an export, a model or its adapters, and nothing else.

Files are selected by name, so logs, checkpoints, locks and configurations are not sent. In descriptive texts, paths of this
machine are reduced to their last part (`<path>/gsm8k`) and secrets are replaced; data is never rewritten, and refused if it
contains a secret of the environment.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cft.annotation.store import AnnotationStore
from cft.config.redaction import environment_secrets, hidden
from cft.errors import UserError
from cft.models.export import SUMS, require_intact
from cft.runs.agreement import FILE as AGREEMENT
from cft.runs.lineage import CARD
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import ADAPTER, EXPORT
from cft.runs.weights_card import model_card

Part = Literal["auto", "model", "adapter"]
_STEPS = "steps"  # of a pipeline's folder, what is remembered of each
_ASIDE = ("estimate-", "search-")  # steps of a comparison whose models are no results
_ANNOTATION = ("manifest.json", CARD, AGREEMENT, "units/*.json", "rows/*.parquet", "problems/*.parquet")
_DATA_SET = ("manifest.json", CARD, "dataset_info.json", "data/*", "tokenized/*.json", "tokenized/*/*")
_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", CARD, SUMS)
_DESCRIBES = {"manifest.json", CARD, AGREEMENT, "config.json", "adapter_config.json", "generation_config.json"}
_DESCRIBES |= {"tokenizer_config.json", "dataset_info.json", "state.json"}
# An absolute path with two or more parts, not within a URL or below a placeholder such as <this folder>.
_PATH = re.compile(r"(?:(?<=file://)|(?<![\w:/.~>}$)\]-]))/(?:[^\s/\"'`|,;:=()<>\\]+/)+([^\s/\"'`|,;:=()<>\\]*)")


class PublishError(UserError, ValueError):
    """A folder that cannot be published as it is; the message says why."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files to send. kind: in words. files: path in the repository -> file, or replacement text. rewritten: names of files that
    contained paths or secrets."""

    kind: str
    repo_type: Literal["dataset", "model"]
    files: dict[str, Path | bytes]
    rewritten: tuple[str, ...]


def parcel(folder: Path, *, part: Part = "auto") -> Parcel:
    """folder: an annotation, an export of cft export, a run of cft train or cft rl, a pipeline with one such run, or a model
    folder. part: of a run.

    Raises:
        PublishError: none of these, unfinished, or with a secret in its data.
        DamagedModel: a model whose files are not those that were written.
    """
    if (folder / RESULTS).is_file() or (folder / EXPORT).is_dir():
        return _of_run(folder, part=part)
    if (folder / _STEPS).is_dir():
        return _of_run(_only_run(folder), part=part)
    if part != "auto":
        raise PublishError(f"part={part}: {folder} is no run of cft train or cft rl (no {RESULTS}); leave part out")
    if (folder / "manifest.json").is_file():
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if "splits" in manifest:
            return _parcel(f"export ({manifest.get('format')})", "dataset", _named(folder, _DATA_SET))
        if AnnotationStore(folder).unfinished_shards() or not manifest.get("finished"):
            raise PublishError(f"{folder}: the annotation is not finished; run its command again, which resumes it")
        return _parcel("annotation", "dataset", _named(folder, _ANNOTATION))
    if (folder / "config.json").is_file():
        return _of_model(folder, "model", card={})
    raise PublishError(
        f"path={folder}: nothing to publish; expected an annotation or an export (with manifest.json), a run of cft train or "
        f"cft rl (with {RESULTS}), a pipeline, or a model folder (with config.json)"
    )


def without_machine(text: str) -> str:
    """A text without secrets, and with paths of this machine reduced to their last part."""
    return hidden(_PATH.sub(lambda found: f"<path>/{found[1]}", text))


def _only_run(folder: Path) -> Path:
    """The run of a pipeline that ends in one model. Which of several is published is no choice of a program: the best on test
    problems would be chosen by what it is judged by."""
    names = sorted(path.stem for path in (folder / _STEPS).glob("*.json"))
    runs = [folder / name for name in names if (folder / name / EXPORT).is_dir() and not name.startswith(_ASIDE)]
    if len(runs) == 1:
        return runs[0]
    if not runs:
        raise PublishError(
            f"path={folder}: no step of this pipeline holds a model ({EXPORT}/); cft compare keeps them with keep=exports"
        )
    named = [f"path={run}{_score(run)}" for run in runs]
    raise PublishError(f"path={folder}: {len(runs)} steps of this pipeline hold a model; say which: {', '.join(named)}")


def _score(run: Path) -> str:
    """On validation problems, where they were what chose the epoch."""
    found = RunResults.find(run)
    best = (found.best_validation if found else None) or {}
    return f" ({best['metric']} {best['value']:.3f})" if isinstance(best.get("value"), float) else ""


def _of_run(folder: Path, *, part: Part) -> Parcel:
    place = folder / (ADAPTER if part == "adapter" else EXPORT)
    if not place.is_dir() or not (folder / RESULTS).is_file():
        lora = ", which only a training with model.lora writes" if part == "adapter" else ""
        missing = place if not place.is_dir() else folder / RESULTS
        raise PublishError(f"path={folder}: no {missing.name}{lora}; expected a finished run of cft train or cft rl")
    if part == "adapter":
        return _of_model(place, "adapters", card={CARD: model_card(folder, adapter=True)})
    return _of_model(place, "model", card={})


def _of_model(folder: Path, kind: str, *, card: Mapping[str, str]) -> Parcel:
    for weights in (False, True):
        require_intact(folder, weights=weights)
    files = {**_named(folder, _MODEL), **{name: text.encode() for name, text in card.items()}}
    if not any(name.endswith(".safetensors") for name in files):
        raise PublishError(f"path={folder}: no weights (*.safetensors) beside config.json")
    made = _parcel(kind, "model", files)
    if SUMS in made.files and made.rewritten:
        made.files[SUMS] = _sums_again(folder / SUMS, made.files)
    return made


def _parcel(kind: str, repo_type: Literal["dataset", "model"], files: Mapping[str, Path | bytes]) -> Parcel:
    chosen: dict[str, Path | bytes] = {}
    rewritten = []
    for name, content in files.items():
        chosen[name] = content
        if Path(name).name in _DESCRIBES or isinstance(content, bytes):
            raw = content if isinstance(content, bytes) else content.read_bytes()
            clean = without_machine(raw.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
            if clean != raw:
                chosen[name] = clean
                rewritten.append(name)
        elif environment_secrets() and any(_holds_secret(text) for text in _texts(content)):
            raise PublishError(
                f"{content}: holds a secret of this environment (a variable whose name ends in key, token or the like); make "
                "the data again without it"
            )
    return Parcel(kind, repo_type, chosen, tuple(rewritten))


def _named(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Regular files of the folder by relative path; links are excluded, since they lead out of it."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {
        path.relative_to(folder).as_posix(): path
        for path in found
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    }


def _texts(path: Path) -> Iterator[str]:
    """Of a data file, where it holds some."""
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)  # pyright: ignore[reportArgumentType] - documented, not typed
        for chunk in (chunk for column in table.columns for chunk in column.chunks):
            yield from _strings(chunk)
    elif path.suffix in (".jsonl", ".json", ".txt", ".jinja", ".py"):
        yield path.read_text(encoding="utf-8", errors="replace")


def _strings(array: pa.Array) -> Iterator[str]:
    """Including those in lists and records; each text once."""
    if pa.types.is_list(array.type):
        yield from _strings(array.flatten())
    elif pa.types.is_struct(array.type):
        for part in array.flatten():
            yield from _strings(part)
    elif pa.types.is_string(array.type):
        yield "\n".join(text for text in array.unique().to_pylist() if text)


def _holds_secret(text: str) -> bool:
    return any(secret in text for secret in environment_secrets())


def _sums_again(sums: Path, files: Mapping[str, Path | bytes]) -> bytes:
    """SHA256SUMS with the hashes of the files as sent."""
    lines = []
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        content = files.get(name)
        lines.append(f"{hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else digest}  {name}\n")
    return "".join(lines).encode()
