"""The annotation store: evidence about every token, as Parquet files with a manifest.

    <annotations_dir>/<name>/
        manifest.json              schema version, fingerprint of all conditions, counts, compute, finished or not
        rows/00003.<hash>.parquet      one row per annotated response   (columns: cft.types.AnnotatedResponse)
        problems/00003.<hash>.parquet  one row per problem tried, solved or not, and why it was skipped
        units/00003.json           commit record of unit 3: names and SHA-256 of its two files, the fingerprint that it
                                   was made under, counts, compute

A unit is a fixed slice of the problems. Its files are written first and its record last, each under a temporary name
and renamed, so that a unit is committed as a whole or not at all: after a kill at any point, a resumed run redoes at most one
unit and the table equals that of an uninterrupted run. Several processes may write different units at the same time
(`cft/annotation/shards.py`). The rows can be loaded directly:
`datasets.load_dataset("parquet", data_files=".../rows/*.parquet")`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cft.annotation.rows import ROW_SCHEMA, rows_table, table_hash, table_rows
from cft.annotation.shards import ALONE, WHOLE, Part, Shard, at_work, clear_place, gate, place, unfinished_message
from cft.errors import UserError
from cft.files import sha256_file, sha256_json, write_bytes, write_json, writing_errors
from cft.types import AnnotatedResponse

__all__ = ["AnnotationStore", "ProblemRecord", "StoreError", "check_name", "find_annotation", "table_hash"]

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).parent.parent / "assets" / "annotations"
_KINDS = ("rows", "problems")


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """Result of one problem.

    status: annotated | wrong (or right, if wrong responses are annotated) | undecided | cut off | near limit | prompt too
    long | no solution given | question, solution or conversation not encodable: reason.

    Rollouts: status is all right | some right | none right | none decided | prompt too long; `response` is empty; responses,
    right, undecided: numbers of responses; pass_rate: NaN if no response is decided.
    """

    problem_id: str
    status: str
    response: str
    extracted: str
    response_tokens: int
    decoded_tokens: int
    responses: int = 0
    right: int = 0
    undecided: int = 0
    pass_rate: float = float("nan")


PROBLEM_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("status", pa.string()),
        ("response", pa.string()),
        ("extracted", pa.string()),
        ("response_tokens", pa.int32()),
        ("decoded_tokens", pa.int32()),
    ]
)
ROLLOUT_FIELDS = {"responses": pa.int32(), "right": pa.int32(), "undecided": pa.int32(), "pass_rate": pa.float64()}


class StoreError(UserError, ValueError):
    """The store on disk is missing, damaged or does not match; the message names the file and the remedy."""


def find_annotation(annotation: str, *, annotations_dir: str | Path, key: str = "data.annotation") -> Path:
    """Folder of an annotation by path, by name under annotations_dir, or by name among the shipped ones.

    key: the setting that names it, for messages. Raises StoreError if there is none, or if it has gaps because shards are
    unfinished.
    """
    path = Path(annotation)
    candidates = [path] if path.name != annotation else [Path(annotations_dir) / annotation, SHIPPED / annotation]
    for candidate in candidates:
        if (candidate / "manifest.json").is_file():
            if state := AnnotationStore(candidate).unfinished_shards():
                raise StoreError(f"{key}={annotation}: {candidate} is {unfinished_message(state)}")
            return candidate
    known = sorted({p.parent.name for root in (Path(annotations_dir), SHIPPED) for p in root.glob("*/manifest.json")})
    raise StoreError(
        f"{key}={annotation}: no manifest.json in {' or '.join(map(str, candidates))}. "
        f"Known annotations: {', '.join(known) or 'none'}. Make one with: cft annotate annotation={path.name}"
    )


def read_parquet(path: Path) -> pa.Table:
    """Read one file, without turning folders named key=value in its path into columns."""
    return pq.read_table(path, partitioning=None)  # pyright: ignore[reportArgumentType] - documented, not typed


def check_name(name: str, *, annotations_dir: str | Path) -> str:
    """Check an annotation's name, which is a folder name. Raises StoreError if it could leave annotations_dir or is taken."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", name):
        raise StoreError(
            f"annotation={name!r}: expected a folder name of letters, digits, '.', '_', '+', '-' (at most 100)"
        )
    if (SHIPPED / name).exists() and Path(annotations_dir).resolve() != SHIPPED:
        raise StoreError(f"annotation={name}: the name of an annotation that ships with the package; choose another")
    return name


class AnnotationStore:
    """One annotation on disk. Reading needs no lock; writing requires the context `writing()`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._made_under = ""  # fingerprint of the units being written
        self._further_columns: tuple[str, ...] = ()  # optional columns of the rows being written

    # ---- reading

    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise StoreError(f"{path}: not found; make the annotation with cft annotate") from error
        except ValueError as error:
            raise StoreError(f"{path}: damaged ({error}). Delete {self.folder} and annotate again") from error
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        if found != SCHEMA_VERSION:
            raise StoreError(
                f"{path}: schema {found}, but this version reads schema {SCHEMA_VERSION}. Annotate again under another "
                f"name, or delete {self.folder}"
            )
        return manifest

    def row_columns(self) -> pa.Schema:
        """Names and types of the columns of its rows."""
        paths = sorted((self.folder / "rows").glob("*.parquet"))
        return pq.read_schema(paths[0]) if paths else ROW_SCHEMA

    def unfinished_shards(self) -> dict[str, Any] | None:
        """State of the unfinished shards (`cft.annotation.shards.Part.state`), None if there are none."""
        return self.manifest().get("shards")

    def units(self) -> dict[int, dict[str, Any]]:
        """Commit records by unit number."""
        return {int(path.stem): self._record(int(path.stem)) for path in sorted((self.folder / "units").glob("*.json"))}

    def rows(self) -> list[AnnotatedResponse]:
        """All annotated responses in order.

        Raises StoreError if a file differs from the committed one, or a unit is missing or belongs to another annotation.
        """
        return [row for unit in self._whole() for row in self.unit_rows(unit)]

    def unit_rows(self, unit: int) -> list[AnnotatedResponse]:
        return table_rows(self._table(unit, "rows"))

    def problems(self) -> list[ProblemRecord]:
        return [record for unit in self._whole() for record in self.unit_problems(unit)]

    def unit_problems(self, unit: int) -> list[ProblemRecord]:
        return [ProblemRecord(**record) for record in self._table(unit, "problems").to_pylist()]

    def _whole(self) -> dict[int, dict[str, Any]]:
        """The commit records, checked against the manifest. While other processes write, there may be more units."""
        manifest, units = self.manifest(), self.units()
        self._require_made_under(units, manifest["fingerprint_sha256"])
        counted = manifest["units"]
        if len(units) < counted or (manifest["finished"] and len(units) > counted):
            gaps = sorted({*range(counted)} - {*units})
            named = f" (missing: {', '.join(str(self._record_path(u)) for u in gaps[:8])})" if gaps else ""
            raise StoreError(
                f"{self.folder}: manifest.json counts {counted} units, {len(units)} are there{named}. "
                f"{self._repeat('To make the missing units')}"
            )
        found = _total(record.get("counts", {}) for record in units.values())
        if manifest["finished"] and found != manifest["counts"]:
            raise StoreError(
                f"{self.folder}: manifest.json counts {manifest['counts']}, its units {found}: it contains files of another "
                f"annotation. Delete the folder. {self._repeat('To annotate again')}"
            )
        return units

    def _require_made_under(self, units: Mapping[int, dict[str, Any]], fingerprint_sha256: str) -> None:
        """Raises StoreError naming the units that were made under other conditions."""
        foreign = [unit for unit, record in units.items() if record.get("fingerprint") != fingerprint_sha256]
        if foreign:
            names = ", ".join(str(self._record_path(unit)) for unit in foreign[:8])
            theirs = units[foreign[0]].get("fingerprint") or "none"
            raise StoreError(
                f"{self.folder}: {len(foreign)} of its {len(units)} units were made under other conditions (fingerprint "
                f"{theirs[:12]}, expected {fingerprint_sha256[:12]}): {names}. Their rows are not comparable; give the new "
                f"annotation another name (annotation=...), or delete {self.folder}"
            )

    def _repeat(self, purpose: str) -> str:
        """Advice to repeat the command of the process that wrote last."""
        written_by = self.manifest().get("written_by") or [{}]
        command = written_by[-1].get("command", "")
        return f"{purpose}: {command}" if command else f"{purpose}, repeat the command that made this annotation"

    def _record(self, unit: int) -> dict[str, Any]:
        path = self._record_path(unit)
        try:
            record = json.loads(path.read_bytes())
        except ValueError as error:
            raise StoreError(f"{path}: damaged ({error}). {self._rebuild(unit)}") from error
        if not (isinstance(record, dict) and all({"file", "sha256"} <= {*record.get(kind, ())} for kind in _KINDS)):
            raise StoreError(
                f"{path}: damaged, expected a file and its sha256 for rows and problems. {self._rebuild(unit)}"
            )
        return record

    def _record_path(self, unit: int) -> Path:
        return self.folder / "units" / f"{unit:05d}.json"

    def _table(self, unit: int, kind: str) -> pa.Table:
        record = self._record(unit)[kind]
        path = self.folder / kind / record["file"]
        if not path.is_file():
            raise StoreError(f"{path}: missing, though unit {unit} is committed. {self._rebuild(unit)}")
        found = sha256_file(path)
        if found != record["sha256"]:
            raise StoreError(f"{path}: damaged, SHA-256 {found}, expected {record['sha256']}. {self._rebuild(unit)}")
        return read_parquet(path)

    def _rebuild(self, unit: int) -> str:
        return f"To rebuild just this unit: rm {shlex.quote(str(self._record_path(unit)))}. {self._repeat('Then')}"

    # ---- writing

    @contextmanager
    def writing(
        self,
        *,
        fingerprint: dict[str, Any],
        info: dict[str, Any],
        part: Part = ALONE,
        further_columns: tuple[str, ...] = (),
    ) -> Iterator[None]:
        """Create or resume the store, as the only process that writes `part` of it.

        The manifest says `finished` once no unit of any shard remains to be done and no other process is writing; until then
        its entry `shards` names the unfinished shards.

        Args:
            fingerprint: Conditions that must not change.
            info: Information for people. The manifest keeps that of the last process, except for the list `written_by`, to
                which each process adds its entries.
            part: The shard that this process writes.
            further_columns: Columns of `cft.annotation.rows.OPTIONAL` that every file of rows has.

        Raises:
            FolderInUse: Another process writes this part.
            WriteError: A file cannot be written.
            StoreError: The conditions differ from the manifest, or the request from that of the other shards.
        """
        with ExitStack() as held:
            with gate(self.folder):
                held.enter_context(place(self.folder, part.shard))
                before = None
                self._made_under, self._further_columns = sha256_json(fingerprint), further_columns
                if (self.folder / "manifest.json").exists():
                    self._require_same(fingerprint)
                    before = self._require_agreement(part)
                self._require_made_under(self.units(), self._made_under)
                state = part.state(self.units(), at_work=at_work(self.folder, but=part.shard))
                # A single process may still be killed before it fills the gaps of earlier shards.
                shards = state if part.shard.count > 1 or not part.in_order or state is None else before
                self._write_manifest(fingerprint, info, finished=False, shards=shards)
                self._remove_orphans(part.shard)
            yield
            with gate(self.folder):
                state = part.state(self.units(), at_work=at_work(self.folder, but=part.shard))
                self._write_manifest(fingerprint, info, finished=state is None, shards=state)
                if state is None:  # the last process: leftover files of killed shards belong to no running process
                    self._remove_orphans(WHOLE)
                clear_place(self.folder, part.shard)  # before the gate is released, so that the last process is alone

    def commit(
        self,
        unit: int,
        *,
        rows: Sequence[AnnotatedResponse],
        problems: Sequence[ProblemRecord],
        facts: dict[str, Any],
    ) -> None:
        """Write a unit's files, then its record, which commits it. A unit that was committed before is replaced.

        Raises WriteError; the unit is then unchanged.
        """
        path = self._record_path(unit)
        before = self._record(unit) if path.exists() else None
        record = {
            "rows": self._write_table(unit, "rows", rows_table(rows, further=self._further_columns)),
            "problems": self._write_table(
                unit, "problems", _problems_table(problems, rollouts="sample" in self._further_columns)
            ),
            **facts,
            "fingerprint": self._made_under,
        }
        write_json(path, record)
        for kind in _KINDS:
            if before and before[kind]["file"] != record[kind]["file"]:
                (self.folder / kind / before[kind]["file"]).unlink(missing_ok=True)

    def _write_table(self, unit: int, kind: str, table: pa.Table) -> dict[str, Any]:
        sink = pa.BufferOutputStream()
        floats, others = _leaves(table.schema)
        # Floats of one column share their high bytes: byte-stream splitting makes the whole file a third smaller.
        encoding: dict[str, Any] = {"use_dictionary": others, "use_byte_stream_split": floats}  # lists of columns
        pq.write_table(table, sink, compression="zstd", compression_level=9, **encoding)
        data = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(data).hexdigest()
        name = f"{unit:05d}.{digest[:12]}.parquet"
        write_bytes(self.folder / kind / name, data)
        return {"file": name, "sha256": digest, "count": table.num_rows}

    def _require_same(self, fingerprint: dict[str, Any]) -> None:
        stored = self.manifest()["fingerprint"]
        then, now = (dict(_by_dotted_key(tree)) for tree in (stored, fingerprint))
        differing = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
        if differing:
            lines = [f"  {key}: stored {then.get(key)!r}, now {now.get(key)!r}" for key in differing]
            raise StoreError(
                f"{self.folder}: made under other conditions, so new rows would not be comparable with its rows:\n"
                + "\n".join(lines)
                + f"\nGive the new annotation another name (annotation=...), or delete {self.folder}"
            )

    def _require_agreement(self, part: Part) -> dict[str, Any] | None:
        """State of the unfinished shards. Raises StoreError if `part` is one of them and requests something else."""
        state = self.unfinished_shards()
        if state and state["count"] == part.shard.count > 1 and state["request"] != part.request:
            theirs, ours = state["request"], part.request
            differing = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
            lines = [f"  {key}: the others {theirs.get(key)!r}, {part.shard} {ours.get(key)!r}" for key in differing]
            raise StoreError(
                f"{self.folder}: all shards must have the same settings, but these differ:\n"
                + "\n".join(lines)
                + f"\nIt is {unfinished_message(state)}\nTo use other settings, finish it first, or resume with another "
                "num_shards (1 is possible)"
            )
        return state

    def _write_manifest(
        self, fingerprint: dict[str, Any], info: dict[str, Any], *, finished: bool, shards: dict[str, Any] | None
    ) -> None:
        units = self.units()
        path = self.folder / "manifest.json"
        written_by = self.manifest().get("written_by", []) if path.exists() else []
        written_by += [process for process in info.get("written_by", []) if process not in written_by]
        write_json(
            path,
            {
                "schema": SCHEMA_VERSION,
                "finished": finished,
                "fingerprint": fingerprint,
                "fingerprint_sha256": sha256_json(fingerprint),
                "units": len(units),
                "counts": _total(record.get("counts", {}) for record in units.values()),
                "compute": _total(record.get("compute", {}) for record in units.values()),
                **({"shards": shards} if shards else {}),
                **info,
                **({"written_by": written_by} if written_by else {}),
            },
        )

    def _remove_orphans(self, shard: Shard) -> None:
        """Remove uncommitted and temporary files of `shard` that a killed process left. Called while holding the gate."""
        units = self.units()
        with writing_errors(self.folder):
            for kind in _KINDS:
                committed = {record[kind]["file"] for record in units.values()}
                for path in (self.folder / kind).glob("*"):
                    if path.name not in committed and _is_of(path, shard):
                        path.unlink()
            for path in (self.folder / "units").glob(".*.tmp"):
                if _is_of(path, shard):
                    path.unlink()
            for path in self.folder.glob(".*.tmp"):  # of the manifest, which is written while holding the gate
                path.unlink()


def _problems_table(problems: Sequence[ProblemRecord], *, rollouts: bool) -> pa.Table:
    schema = pa.schema([*PROBLEM_SCHEMA, *(ROLLOUT_FIELDS.items() if rollouts else ())])
    return pa.Table.from_pylist([asdict(problem) for problem in problems], schema=schema)


def _is_of(path: Path, shard: Shard) -> bool:
    """Whether a file belongs to one of the shard's units, by its name; a single process owns files of any other name."""
    name = re.match(r"\.?(\d+)\.", path.name)
    return shard.has(int(name[1])) if name else shard == WHOLE


def _leaves(schema: pa.Schema) -> tuple[list[str], list[str]]:
    """Parquet's names of the leaf columns: floats, and all others."""
    floats: list[str] = []
    others: list[str] = []
    for column in schema:
        path, kind = column.name, column.type
        while pa.types.is_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        (floats if pa.types.is_floating(kind) else others).append(path)
    return floats, others


def _total(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = round(total.get(key, 0) + value, 3)
    return total


def _by_dotted_key(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a fingerprint by dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _by_dotted_key(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
