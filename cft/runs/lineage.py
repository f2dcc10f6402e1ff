"""Lineage: annotation -> checkpoint -> evaluation, each identified by a fingerprint of its contents.

It is recorded in a run's results.json and an annotation's manifest.json, with any logger:

    "lineage": {"command": what was typed,
                "inputs": [{"kind", "name", "fingerprint", "came_from": the same of its own inputs}]}

The same `Link` becomes an artifact of Weights & Biases (`cft/loggers/wandb_run.py`). Two runs with the same annotation share
one artifact, since W&B identifies artifacts by the digest of their files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cft.config.redaction import redacted
from cft.files import sha256_file, sha256_json
from cft.models.export import SUMS
from cft.runs.names import run_name
from cft.runs.results import RESULTS, RunResults
from cft.runs.run import CONFIG, EXPORT
from cft.types import DataSource

CARD = "README.md"
_LONGEST_NAME = 120  # of an artifact; W&B takes 128


@dataclass(frozen=True, slots=True)
class Link:
    """An annotation, rows or a checkpoint that a run made or read.

    name: a valid name of an artifact. fingerprint: SHA-256 of its contents. came_from: JSON. described_by: small descriptive
    files. holds: the files with data or weights. Both are below `folder`.
    """

    kind: Literal["annotation", "rows", "checkpoint"]
    name: str
    fingerprint: str
    came_from: dict[str, Any]
    folder: Path
    described_by: tuple[Path, ...]
    holds: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Its entry in results.json and in a W&B config."""
        return {"kind": self.kind, "name": self.name, "fingerprint": self.fingerprint, "came_from": self.came_from}


def lineage(command: str, inputs: Sequence[Link]) -> dict[str, Any]:
    """The entry of results.json, without secrets. command: of the job."""
    entry = redacted({"command": command, "inputs": [link.as_dict() for link in inputs]})
    assert isinstance(entry, dict)
    return entry


def annotation_link(folder: Path) -> Link:
    """Link of a store with a manifest; the fingerprint covers the committed rows."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    units = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "units").glob("*.json"))]
    made = manifest["fingerprint"]
    return Link(
        "annotation",
        _name("annotation", manifest["name"]),
        sha256_json([manifest["fingerprint_sha256"], [unit["rows"]["sha256"] for unit in units]]),
        {
            **manifest.get("lineage", {}),
            "conditions": manifest["fingerprint_sha256"],
            "model": made["model"],
            "data": made["data"],
            "responses": manifest["counts"].get("annotated", 0),
        },
        folder,
        _there(folder, "manifest.json", CARD),
        tuple(folder / kind / unit[kind]["file"] for unit in units for kind in ("rows", "problems")),
    )


def data_link(source: DataSource) -> Link:
    """Link of the training data; for rows made by `cft export` it leads on to their annotation."""
    if source.kind == "annotation":
        return annotation_link(source.place)
    folder = source.place if source.place.is_dir() else source.place.parent
    made = next((path for path in (folder / "manifest.json", folder.parent / "manifest.json") if path.is_file()), None)
    came_from = _lineage_in(made) if made else {}
    holds = (source.place,) if source.place.is_file() else ()
    return Link("rows", _name("rows", source.name), source.fingerprint, came_from, folder, (), holds)


def model_inputs(path: str) -> tuple[Link, ...]:
    """The checkpoint whose export a model's path is, if any."""
    folder = Path(path)
    return (checkpoint_link(folder.parent),) if folder.name == EXPORT and (folder.parent / RESULTS).is_file() else ()


def checkpoint_link(folder: Path) -> Link:
    """Link of a run folder of cft train, or of any Hugging Face model folder."""
    results = RunResults.find(folder)
    model = folder / EXPORT if (folder / EXPORT).is_dir() else folder
    weights = tuple(sorted((*model.glob("*.safetensors"), *model.glob("*.bin"))))
    fingerprint = sha256_json([[path.name, sha256_file(path)] for path in weights])
    described_by = _there(folder, RESULTS, CONFIG, f"{EXPORT}/{CARD}", f"{EXPORT}/config.json", f"{EXPORT}/{SUMS}")
    if results is None:
        return Link("checkpoint", _name("checkpoint", folder.name), fingerprint, {}, folder, described_by, weights)
    came_from = {"run": results.run, "identity": results.identity, "seed": results.seed}
    return Link(
        "checkpoint",
        _name("checkpoint", run_name(results.arm, seed=results.seed), end=f"-{results.identity}"),
        fingerprint,
        {**came_from, **results.lineage},
        folder,
        described_by,
        (*weights, *sorted(path for path in model.iterdir() if path.suffix in (".json", ".jinja", ".model"))),
    )


def annotation_contents(entry: Mapping[str, Any]) -> str:
    """Fingerprint of the annotation's contents, from a lineage or those of its inputs; "" if there is none. The fingerprint of
    the annotation's conditions, which stays the same while it grows, is `conditions` there and `fingerprint_sha256` in its
    manifest."""
    inputs = entry.get("inputs") or ()
    own = [str(one["fingerprint"]) for one in inputs if one.get("kind") == "annotation"]
    return next(iter(own), "") or next(
        filter(None, (annotation_contents(one.get("came_from") or {}) for one in inputs)), ""
    )


def _lineage_in(manifest: Path) -> dict[str, Any]:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    entry = found.get("lineage") if isinstance(found, dict) else None
    return entry if isinstance(entry, dict) else {}


def _there(folder: Path, *names: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in names if (folder / name).is_file())


def _name(*words: str, end: str = "") -> str:
    """Reduced to letters, digits, dashes, underscores and dots, as W&B requires."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words))[: _LONGEST_NAME - len(end)] + end
