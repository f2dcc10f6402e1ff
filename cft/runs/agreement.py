"""Agreement of two annotations of the same problems, such as one by another engine, device or precision with a reference.

    problems        in both
    responses       with the same token ids; only their positions are compared
    alternatives    positions at which both tried the same tokens, in the same order
    outcomes        cells of these that both know, with the same outcome
    critical        positions that both tried, with the same decision of the mask (turning ones of wrong responses)

The result is written to the annotation's folder (agreement.json) and shown in its card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cft.annotation.rollouts import holds_rollouts
from cft.annotation.store import AnnotationStore, ProblemRecord, StoreError
from cft.files import write_json
from cft.masks.critical import Deciding
from cft.types import AnnotatedResponse, Outcome

FILE = "agreement.json"
# The entries of the fingerprints that may differ; all others must be the same.
MAY_DIFFER = frozenset({"model", "numerics", "unit_size", "replay_fraction", "positions", "evidence"})


@dataclass(frozen=True, slots=True)
class Share:
    """same: of `all`."""

    same: int
    all: int

    def __str__(self) -> str:
        return f"{self.same:,} of {self.all:,}" + (f" ({self.same / self.all:.2%})" if self.all else "")


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two annotations; the shares are described at the top of this module."""

    responses: Share
    verdicts: Share
    alternatives: Share
    outcomes: Share
    critical: Share


def compare(one: AnnotationStore, other: AnnotationStore) -> Agreement:
    """Raises StoreError if more than the engine differs, or no problem is in both."""
    for store in (one, other):
        if holds_rollouts(store.manifest()):
            raise StoreError(
                f"{store.folder} holds rollouts, of which no token was tried, so that no outcomes can be compared; expected "
                "annotations with counterfactual evidence (cft annotate responses=solve, wrong or given)"
            )
    _require_comparable(one, other)
    mine, theirs = _problems(one), _problems(other)
    both = [problem for problem in mine if problem in theirs]
    if not both:
        raise StoreError(f"{one.folder} and {other.folder} have no problem in common; annotate the same ones")
    my_rows, their_rows = _rows(one), _rows(other)
    compared = [_compared(my_rows[r], their_rows[r]) for r in my_rows if r in their_rows]
    alternatives, outcomes, critical = (_total([shares[i] for shares in compared]) for i in range(3))
    return Agreement(
        Share(sum(_same_text(mine[problem], theirs[problem]) for problem in both), len(both)),
        Share(sum(mine[problem].status == theirs[problem].status for problem in both), len(both)),
        alternatives,
        outcomes,
        critical,
    )


def _compared(one: AnnotatedResponse, other: AnnotatedResponse) -> tuple[Share, Share, Share]:
    """Shares of alternatives, outcomes and critical tokens in two rows with the same response."""
    k = min(one.alt_ids.shape[1], other.alt_ids.shape[1])
    same_R = (one.alt_ids[:, :k] == other.alt_ids[:, :k]).all(-1)
    mine_Rk, theirs_Rk = one.alt_outcome[:, :k], other.alt_outcome[:, :k]
    known_Rk = (mine_Rk != Outcome.UNTRIED) & (theirs_Rk != Outcome.UNTRIED) & same_R[:, None]
    mask = Deciding(num_alternatives=k)
    both_R = mask.known(one) & mask.known(other)
    same_mask = int(((mask(one) > 0) == (mask(other) > 0))[both_R].sum())
    return (
        Share(int(same_R.sum()), len(same_R)),
        Share(int((mine_Rk == theirs_Rk)[known_Rk].sum()), int(known_Rk.sum())),
        Share(same_mask, int(both_R.sum())),
    )


def write_agreement(store: AnnotationStore, other: AnnotationStore, found: Agreement) -> Path:
    """Write it to the annotation's folder, replacing an earlier comparison with the same other annotation."""
    theirs = other.manifest()
    entry = {
        "with": theirs["name"],
        "fingerprint": theirs["fingerprint_sha256"],
        "engine": engine_of(theirs),
        **asdict(found),
    }
    kept = [past for past in read_agreements(store.folder) if past["with"] != theirs["name"]]
    path = store.folder / FILE
    write_json(path, [*kept, entry])
    return path


def read_agreements(folder: Path) -> list[dict[str, Any]]:
    """Stored comparisons, [] if there are none."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path}: damaged ({error}). Delete it, and compare again with cft agreement") from error


def engine_of(manifest: Mapping[str, Any]) -> str:
    """Name, device and precision in words."""
    numerics = manifest["fingerprint"]["numerics"]
    configured = str((manifest["config"].get("engine") or {}).get("_target_", "")).rpartition(".")[2]
    words = [
        str(numerics.get("name") or configured),
        str(numerics.get("version", "")),
        str(numerics.get("gpu") or numerics.get("device", "")),
        str(manifest["fingerprint"]["model"]["dtype"]),
    ]
    return ", ".join(word for word in words if word)


def _require_comparable(one: AnnotationStore, other: AnnotationStore) -> None:
    mine, theirs = one.manifest()["fingerprint"], other.manifest()["fingerprint"]
    differing = [key for key in sorted({*mine, *theirs} - MAY_DIFFER) if mine.get(key) != theirs.get(key)]
    if differing:
        lines = [f"  {key}: {mine.get(key)!r} and {theirs.get(key)!r}" for key in differing]
        raise StoreError(
            f"{one.folder} and {other.folder} differ in more than the engine, and their agreement would say nothing of it:\n"
            + "\n".join(lines)
        )


def _problems(store: AnnotationStore) -> dict[str, ProblemRecord]:
    return {record.problem_id: record for record in store.problems()}


def _rows(store: AnnotationStore) -> dict[str, AnnotatedResponse]:
    """Rows by response id, which identifies problem and token ids."""
    return {row.response_id: row for row in store.rows()}


def _same_text(one: ProblemRecord, other: ProblemRecord) -> bool:
    return (one.response, one.response_tokens) == (other.response, other.response_tokens)


def _total(shares: Sequence[Share]) -> Share:
    return Share(sum(share.same for share in shares), sum(share.all for share in shares))
