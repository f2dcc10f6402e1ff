"""Records of a pipeline's steps. A step is done if its configuration and inputs are unchanged and its outputs exist.

The inputs of a step are found in its configuration: every text that is a path, the annotation it names, and the stored scores
that its method needs. They are compared by content, not by time: recreating an input with identical content changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cft import __version__
from cft.config.needs import stored_scores
from cft.config.stages import STAGES
from cft.files import sha256_file, sha256_json, write_json
from cft.pipelines.plan import STEPS, Step
from cft.pipelines.reporting import REPORT
from cft.runs.results import RESULTS
from cft.runs.run import flat

# Keys that may change after a step is finished: logging, placement of processes, time limits.
_IGNORED = ("logger", "allow_targets", "interruption", "resume", "fleet", "annotations_dir", "out", "replace")
_IGNORED_KEYS = ("trainer.enable_progress_bar", "trainer.enable_model_summary", "verify.workers")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Record of one step, the content of <pipeline>/steps/<name>.json.

    Args:
        step: Name of the step.
        stage: Stage of the step.
        command: Command that runs it separately.
        config: Config by dotted names, without the keys that may change.
        read: Fingerprint of each input.
        finished: Whether it ended successfully.
        made: Outputs that must exist, relative to the pipeline's folder.
        seconds: Duration of its process, without imports.
        peak_memory: Peak bytes of its process, and of the GPU if there is one.
        version: Version of the package.
    """

    step: str
    stage: str
    command: str
    config: dict[str, Any]
    read: dict[str, str]
    finished: bool = False
    made: list[str] = field(default_factory=list)
    seconds: float | None = None
    peak_memory: dict[str, int] = field(default_factory=dict)
    version: str = __version__

    @property
    def fingerprint(self) -> str:
        return sha256_json([self.stage, self.config, self.read, self.version])

    def is_done(self, folder: Path) -> bool:
        """Whether the step is finished and its outputs exist. folder: the pipeline's folder."""
        return self.finished and all((folder / path).exists() for path in self.made)

    def changed_since(self, then: Record) -> list[str]:
        """Descriptions of the differences: keys of the configuration, and inputs."""
        keys = [key for key in sorted({*self.config, *then.config}) if self.config.get(key) != then.config.get(key)]
        read = [name for name in sorted({*self.read, *then.read}) if self.read.get(name) != then.read.get(name)]
        version = [] if self.version == then.version else ["the version of the package"]
        return [*keys, *(f"the contents of {name}" for name in read), *version]

    def write(self, folder: Path) -> None:
        write_json(_path(folder, self.step), asdict(self))


def record_of(step: Step, *, folder: Path, command: str) -> Record:
    """The record of a step if run now. folder: the pipeline's folder; paths in it are relative, so that it may be moved."""
    config = {
        name: _from(value, folder)
        for name, value in flat(step.config).items()
        if name.split(".")[0] not in _IGNORED and name not in _IGNORED_KEYS
    }
    read = {str(_from(name, folder)): value for name, value in _read(step)}
    # The config as it is read back from JSON.
    return Record(
        step=step.name, stage=step.stage, command=command, config=json.loads(json.dumps(config, default=str)), read=read
    )


def inside(folder: Path, path: str) -> str:
    """A path, relative to the pipeline's folder if it is inside."""
    return str(_from(path, folder))


def known_record(folder: Path, name: str) -> Record | None:
    """The stored record of a step, None if there is none or it is unreadable."""
    try:
        return Record(**json.loads(_path(folder, name).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _path(folder: Path, name: str) -> Path:
    return folder / STEPS / f"{name}.json"


def _from(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_from(inner, folder) for inner in value]
    return value.replace(f"{folder}/", "") if isinstance(value, str) else value


# ---- inputs of a step


def _read(step: Step) -> Iterator[tuple[str, str]]:
    if step.stage == REPORT:
        for each in step.config["folders"]:
            yield from ((str(path), sha256_file(path)) for path in sorted(Path(each).rglob(RESULTS)))
        return
    writes = {str(step.folder), str(step.out), *(str(step.config.get(key)) for key in STAGES[step.stage].out)}
    for name, value in flat(step.config).items():
        if name.split(".")[0] in _IGNORED or not isinstance(value, str) or value in writes or not _is_path(value):
            continue
        yield value, _contents(Path(value))
    yield from _annotation(step)


def _is_path(text: str) -> bool:
    try:
        return bool(text) and ("/" in text or "." in text) and Path(text).exists()
    except (OSError, ValueError):  # not a path: too long, or with a null byte
        return False


def _contents(path: Path) -> str:
    """Hash of a file; of a run or model folder, of its weights and results; of another folder, of all files."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_log(file.relative_to(path)))
    model = [file for file in files if file.suffix in _WEIGHTS and "checkpoints" not in file.parts]
    if model:
        files = [*model, *(file for file in files if file.name in (RESULTS, "tokenizer.json", "config.json"))]
    return sha256_json([[str(file.relative_to(path)), sha256_file(file)] for file in files])


def _is_log(inside: Path) -> bool:
    return inside.suffix in (".log", ".lock") or any(part.startswith(".") for part in inside.parts)


def _annotation(step: Step) -> Iterator[tuple[str, str]]:
    """Fingerprints of the annotation that a step names, and of the stored scores that its method needs."""
    data = step.config.get("data")
    name = data.get("annotation") if isinstance(data, Mapping) else None
    name = name or (step.config.get("annotation") if step.stage != "annotate" else None)
    annotations_dir = step.config.get("annotations_dir")
    if not isinstance(name, str) or not isinstance(annotations_dir, str):
        return
    from cft.annotation.store import StoreError, find_annotation
    from cft.scores.store import scores_folder

    try:
        found = find_annotation(name, annotations_dir=annotations_dir)
    except StoreError:
        return  # the step itself raises the error
    manifest = json.loads((found / "manifest.json").read_bytes())
    units = [json.loads(path.read_bytes()) for path in sorted((found / "units").glob("*.json"))]
    yield str(found), sha256_json([manifest["fingerprint_sha256"], [unit["rows"]["sha256"] for unit in units]])
    folder = scores_folder(found, annotations_dir=annotations_dir)
    for score in sorted(stored_scores(step.config)):
        path = folder / score / "manifest.json"
        if path.is_file():
            yield str(path.parent), str(json.loads(path.read_bytes()).get("sha256"))
