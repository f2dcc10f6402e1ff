"""Converts user-provided rows to rows for training: reads them, removes benchmark problems, splits, and applies masks.

Which tokens may carry loss (`data.roles`, `data.turns`, labels and weights of the rows) is determined when rows are read. A
mask then selects among these tokens, so controls such as random_like draw from the same tokens, and fractions refer to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cft.annotation.store import StoreError
from cft.console import console
from cft.data.annotated import in_validation
from cft.data.batches import MicroBatchAssignment
from cft.data.given import GivenRow, given_hash, given_token_row, scored_row
from cft.data.held_out import HeldOut
from cft.data.module import NothingToTrain, RowsDataModule, RowsRequest, require_loss, require_two_groups
from cft.data.preference_rows import preference_rows
from cft.data.problem_rows import BadRow, ProblemError, Quarantine, Row
from cft.data.row_contents import REMEDY, RowFields, unread_notes
from cft.data.row_files import file_rows, fingerprint_of
from cft.data.row_shapes import RowReader
from cft.files import sha256_json
from cft.masks.spans import All
from cft.prompts.chat import special_tokens
from cft.prompts.conversation import WhichTurns
from cft.ranges import AtLeastOne, CountOrAll, Fraction, FractionBelowOne, in_range
from cft.scores.column import GROUP
from cft.scores.store import Values, expected_kind, given_scores_folder, other_kind, read_score
from cft.types import ASSISTANT, DataSource

TooLong = Literal["skip", "cut"]
UNREAD = "rows_with_unread_"  # of a field, in the facts of a run


@in_range
def given_rows(
    request: RowsRequest,
    *,
    path: Annotated[str, Field(min_length=1)],
    validation_path: str,
    split: str,
    validation_split: str,
    config: str,
    revision: str,
    shape: Literal["auto", "text", "messages", "tokens", "spans", "preference"],
    prompt_field: str,
    completion_field: str,
    messages_field: str,
    id_field: str,
    answer_field: str,
    roles: Sequence[str],
    turns: WhichTurns,
    max_bad_rows: Fraction,
    dir: str,
    batch_size: AtLeastOne,
    micro_batch_assignment: MicroBatchAssignment,
    max_rows: CountOrAll,
    validation_fraction: FractionBelowOne,
    max_tokens: Annotated[int, Field(ge=2)],
    too_long: TooLong,
) -> RowsDataModule:
    """Training rows from a JSONL or Parquet file, a folder or a data set on the hub, with a mask.

    Args:
        request: Mask, columns and settings of the training run.
        path: The file, the folder, or owner/name on the hub.
        validation_path: Source of held-out rows; "" = `validation_split` of `path`, or `validation_fraction` of the rows.
        split: Split of a folder or data set.
        validation_split: Split of held-out rows of a folder or data set; "" = `validation_fraction` of the rows.
        config: Config of a data set on the hub; "" = its default.
        revision: Its branch, tag or commit; "" = the newest.
        shape: Shape of the rows (`cft/data/row_contents.py`); auto = by their fields. A loss that compares responses reads only
            preference, and other losses do not read it; cft score reads preference if it is set here.
        prompt_field: For shape text: a name, a path or a template.
        completion_field: For shape text: a name, a path or a template.
        messages_field: For shape messages.
        id_field: Id by which rows are held out; "" = a hash of the content before the first token with loss.
        answer_field: The gold answer; "" = none.
        roles: Roles whose messages may carry loss.
        turns: All turns of these roles, or the last one.
        max_bad_rows: Fraction of a file's rows that may be skipped, 0 to 1; they are counted and named.
        dir: Folder of the benchmark's files (read by the benchmark; accepted here because the key is shared).
        batch_size: Rows per micro-batch and process.
        micro_batch_assignment: How the rows of an optimizer step are assigned to micro-batches, see `cft/data/batches.py`.
        max_rows: Use only the first `max_rows` rows of the file; -1 = all.
        validation_fraction: Fraction of the ids whose rows are held out, 0 to below 1.
        max_tokens: Maximal number of tokens of a row.
        too_long: Whether to skip longer rows, or to truncate them; both are counted.

    Raises:
        ProblemError: No such file or data set, too many bad rows, or no rows remain.
        NothingToTrain: The mask selects no token.
    """
    tokenizer, prompt = request.tokenizer, request.prompt
    if tokenizer is None or prompt is None:
        raise ProblemError(
            "data=rows: rows are encoded when they are read, so the model's tokenizer and a prompt are needed"
        )
    fields = RowFields(
        "auto" if shape == "preference" else shape,
        prompt_field,
        completion_field,
        messages_field,
        id_field,
        answer_field,
        tuple(roles) or (ASSISTANT,),
    )
    reader = RowReader(prompt, tokenizer, fields, turns)
    places = {False: (path, split)}
    if validation_path or validation_split:
        places[True] = (validation_path or path, validation_split or split)
    found: list[tuple[bool, GivenRow]] = []
    read, facts, digests = 0, Counter[str](), dict[bool, str]()
    for held_out, (place, of_split) in places.items():
        rows = list(file_rows(place, config=config, revision=revision, split=of_split))
        rows = rows[: max_rows if max_rows >= 0 and not held_out else None]
        digests[held_out] = fingerprint_of(place, rows)
        read += len(rows)
        given = _read(
            rows,
            reader,
            source=place,
            max_bad_rows=max_bad_rows,
            facts=facts,
            compared=request.rejected > 0 or shape == "preference",
        )
        found += [(held_out or (len(places) == 1 and _held_out(row, validation_fraction)), row) for row in given]
    found = _numbered(found, facts)
    if len(places) > 1 and not id_field:
        _note_shared(found)
    apart = _apart(found, HeldOut(request.exclude))
    kept = _fitting(apart, max_tokens=max_tokens, too_long=too_long, facts=facts)
    _note(facts, max_tokens=max_tokens, special=special_tokens(tokenizer))
    if not kept:
        raise NothingToTrain(
            f"{path}: nothing to train on: of {len(found)} rows, {len(found) - len(apart)} have questions of the benchmark and "
            f"{len(apart)} are longer than data.max_tokens={max_tokens} or have loss only after that position. Raise "
            "data.max_tokens, set data.too_long=cut, or provide other rows"
        )
    sources = {"mask": request.mask, **request.columns}
    wanted = {name for source in sources.values() for name in source.needs}
    scores, values = _scores([row for _, row in kept], wanted, path=path, annotations_dir=request.annotations_dir)
    responses = {row.row_id: row.response(values.get(row.row_id)) for _, row in kept}
    for source in sources.values():
        source.fit([responses[row.row_id] for held_out, row in kept if not held_out])
    made = [
        (held_out, given_token_row(row, responses[row.row_id], mask=request.mask, columns=request.columns))
        for held_out, row in kept
    ]
    train_rows = [row for held_out, row in made if not held_out]
    require_loss(path, request.mask, train_rows, total=len(made), more="Provide more rows")
    if GROUP in request.columns:
        require_two_groups(train_rows)
    fingerprint = digests[False] if len(digests) == 1 else sha256_json([digests[False], digests[True]])
    return RowsDataModule(
        train_rows,
        [row for held_out, row in made if held_out],
        source=DataSource("rows", Path(path).name, Path(path).expanduser(), fingerprint),
        rows_sha256=given_hash([row for _, row in kept]),
        leaked=len(found) - len(apart),
        scores=scores,
        learnt={name: learnt for name, source in sources.items() if (learnt := source.facts())},
        batch_size=batch_size,
        micro_batch_assignment=micro_batch_assignment,
        seed=request.seed,
        read={"rows_read": read, **facts},
        rejected=request.rejected,
    )


def no_rows() -> None:
    """No user-provided rows; `cft score` then reads an annotation."""


def _read(
    rows: Sequence[Row],
    reader: RowReader,
    *,
    source: str,
    max_bad_rows: float,
    facts: Counter[str],
    compared: bool,
) -> list[GivenRow]:
    """Read rows and count bad ones. compared: whether they are preference rows, each with several responses."""
    quarantine = Quarantine(source, max_bad_rows, remedy=REMEDY)
    made = []
    special = special_tokens(reader.tokenizer)
    for row in rows:
        try:
            if row.value is None:
                raise BadRow(row.reason)
            if compared:
                given = preference_rows(reader, row.value, place=row.place)
            else:
                given = [reader(row.value, place=row.place)]
        except BadRow as error:
            quarantine.add(row, reason=str(error))
            continue
        facts["rows_of_shape_preference" if compared else f"rows_of_shape_{reader.fields.shape_of(row.value)}"] += 1
        facts.update(f"{UNREAD}{name}" for name in (() if compared else reader.fields.unread(row.value)))
        facts["rows_that_spell_special_tokens"] += "input_ids" not in row.value and _spells(row.value, special)
        made += given
    quarantine.report(rows=len(rows))
    facts["bad_rows"] += sum(quarantine.counts.values())
    return made


def _spells(value: Any, special: Any) -> bool:
    if isinstance(value, str):
        return any(text in value for text in special)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_spells(inner, special) for inner in values)


def _held_out(row: GivenRow, fraction: float) -> bool:
    return in_validation(row.problem_id, fraction=fraction)


def _numbered(found: Sequence[tuple[bool, GivenRow]], facts: Counter[str]) -> list[tuple[bool, GivenRow]]:
    """Make ids unique by appending a number to repeated ones; the rows are kept."""
    seen: Counter[str] = Counter()
    made = []
    for held_out, row in found:
        seen[row.row_id] += 1
        again = seen[row.row_id]
        facts["repeated_rows"] += again > 1
        made.append((held_out, replace(row, row_id=f"{row.row_id}#{again}") if again > 1 else row))
    return made


def _note_shared(found: Sequence[tuple[bool, GivenRow]]) -> None:
    """Print how many held-out rows answer a prompt of the training rows, in another file or split."""
    trained = {row.problem_id for held_out, row in found if not held_out}
    if shared := sum(held_out and row.problem_id in trained for held_out, row in found):
        console.print(
            f"Note: {shared} validation rows have the prompt of a training row, so val/loss is lower than on other prompts"
        )


def _apart(found: Sequence[tuple[bool, GivenRow]], questions: HeldOut) -> list[tuple[bool, GivenRow]]:
    apart = [(held_out, row) for held_out, row in found if not questions.is_in((*row.questions, row.text))]
    if leaked := len(found) - len(apart):
        console.print(f"Rows dropped: {leaked} with questions in the benchmark's validation or test split")
    return apart


def _fitting(
    found: Sequence[tuple[bool, GivenRow]], *, max_tokens: int, too_long: TooLong, facts: Counter[str]
) -> list[tuple[bool, GivenRow]]:
    kept = []
    for held_out, row in found:
        if len(row.ids) <= max_tokens:
            kept.append((held_out, row))
            continue
        cut = row.cut(max_tokens)
        if too_long == "cut" and cut.allowed.any():
            facts["rows_cut"] += 1
            kept.append((held_out, cut))
        else:
            facts["rows_too_long"] += 1
    return kept


def _note(facts: Counter[str], *, max_tokens: int, special: Any) -> None:
    """Print how many rows were skipped, cut or repeated."""
    if skipped := facts["rows_too_long"]:
        console.print(
            f"Rows skipped: {skipped} longer than data.max_tokens={max_tokens}, or with loss only after that position"
        )
    if cut := facts["rows_cut"]:
        console.print(
            f"Rows cut: {cut} to their first {max_tokens} tokens (data.max_tokens); they do not teach where to end"
        )
    unread = {name.removeprefix(UNREAD): count for name, count in facts.items() if name.startswith(UNREAD)}
    for note in unread_notes(unread):
        console.print(note, markup=False)
    if again := facts["repeated_rows"]:
        console.print(f"Note: {again} rows have the id of an earlier row; they were kept")
    if spelt := facts["rows_that_spell_special_tokens"]:
        console.print(
            f"Note: {spelt} rows spell special tokens ({', '.join(list(special)[:3])}, ...) in their texts. These were encoded "
            "as ordinary text, since only the chat template adds special tokens. If a template was already applied to these "
            "rows, provide the messages instead (shape messages), or token ids",
            markup=False,
        )


def _scores(
    rows: Sequence[GivenRow], names: Collection[str], *, path: str, annotations_dir: str
) -> tuple[dict[str, str], dict[str, dict[str, Values]]]:
    """(fingerprint of each stored score, values by row and name). If one is missing, raises StoreError with the command."""
    folder = given_scores_folder(path, annotations_dir=annotations_dir)
    fingerprints: dict[str, str] = {}
    values: dict[str, dict[str, Values]] = {}
    for name in sorted(names):
        score = read_score(folder, name=name, annotation="", model="", given=path)
        kind = expected_kind(name)
        if text := other_kind(score.manifest, name=name, kind=kind, annotation="", model="", given=path):
            raise StoreError(f"{score.folder}: {text}")
        fingerprints[name] = score.fingerprint
        for row in rows:
            found = score.of(scored_row(given_token_row(row, row.response(), mask=All(), columns={})))
            if found is None:
                raise StoreError(
                    f"{score.folder}: no values for row {row.row_id} ({row.place}) with its current tokens: the rows, the "
                    "prompt or data.* settings have changed since it was computed. Compute it again: "
                    f"{score.manifest['command']} replace=true"
                )
            values.setdefault(row.row_id, {})[name] = found
    return fingerprints, values
