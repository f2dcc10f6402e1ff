"""Tokens of the annotation behind the runs: critical fraction by kind, position, entropy and probability, and colored text.

    critical       selected by the mask: every alternative that it reads ended wrong or was cut off; of a response that ends
                   wrong these are the turning tokens, whose alternative ended right, and no token is wavering
    wavering       the first alternative did, another one ended right or is undecided
    plain          the first alternative ended right, or is undecided
    untried        no alternative was tried (cft annotate positions=...); such tokens are excluded from fractions

`cft/report/explorer.py` gives them to the page, with each token's alternatives; `terminal` shows them in a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tokenizers
from numpy.typing import NDArray
from rich.text import Text

from cft.annotation.kinds import KINDS, kind_of, token_texts
from cft.annotation.rollouts import holds_rollouts
from cft.annotation.store import SHIPPED, AnnotationStore, StoreError, find_annotation
from cft.errors import UserError
from cft.masks.base import Mask, MaskError
from cft.masks.critical import Deciding, deciding_word
from cft.models.smollm2 import DISTRIBUTION, converted_folder
from cft.report.arms import Comparison
from cft.report.read import ReportError
from cft.report.text import printable
from cft.types import AnnotatedResponse, Outcome

Decode = Callable[[Sequence[int]], str]  # ids -> text, special tokens shown

USUAL_ALTERNATIVES = 2
END = "⏹"
TURNING = "with another token in its place the answer is right"  # what the level critical is in a wrong response
LEVELS = {
    "critical": "every alternative that the mask counts ends wrong or is cut off",
    "wavering": "the first one does, not every one",
    "untried": "no alternative was tried there",
}
_TERMINAL_STYLES = {
    "critical": "bold white on red3",
    "wavering": "black on light_goldenrod2",
    "untried": "dim",
    "plain": "",
}
POSITION_BINS = 10
# Nats; the entropy of a token that is all but certain is far below 0.01.
ENTROPY_EDGES = (0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.5, np.inf)
PROBABILITY_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 0.999, 1.0)


# ---- which tokens are critical


def profile(rows: Sequence[AnnotatedResponse], *, mask: Mask) -> tuple[pd.DataFrame, dict[str, float]]:
    """(critical_tokens.csv, Spearman's rank correlation of being critical with entropy and with probability).

    One row per bin: by (kind, position, entropy or probability), bin, tokens, critical, fraction. Each token that the mask
    knows about is counted once in each view. The correlation is NaN if all tokens are the same.
    """
    known = np.concatenate([mask.known(row) for row in rows])
    critical = pd.Series(np.concatenate([mask(row) > 0 for row in rows])[known])
    entropy = np.concatenate([row.entropy for row in rows]).astype(float)[known]
    probability = np.exp(np.minimum(np.concatenate([row.logprob for row in rows]).astype(float), 0.0))[known]
    tenths = [f"{at / POSITION_BINS:.0%}-{(at + 1) / POSITION_BINS:.0%}" for at in range(POSITION_BINS)]
    kinds = [kind_of(text) for row in rows for text in token_texts(row)]
    views = {
        "kind": pd.Categorical(np.array(kinds)[known], KINDS),
        "position": pd.Categorical.from_codes(
            np.concatenate([_tenths(len(r.response_ids)) for r in rows])[known], tenths
        ),
        "entropy": _binned(entropy, ENTROPY_EDGES),
        "probability": _binned(probability, PROBABILITY_EDGES),
    }
    found = []
    for by, bins in views.items():
        counts = critical.groupby(bins, observed=False).agg(tokens="count", critical="sum").rename_axis("bin")
        found.append(counts.reset_index().astype({"bin": str}).assign(by=by))
    bins = pd.concat(found, ignore_index=True)[["by", "bin", "tokens", "critical"]]
    values = {"entropy": entropy, "probability": probability}
    correlations = {name: spearman(pd.Series(value), critical) for name, value in values.items()}
    return bins.assign(fraction=bins["critical"] / bins["tokens"]), correlations


def spearman(a: pd.Series, b: pd.Series) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where a side has one value only."""
    return float(a.rank().corr(b.rank())) if a.nunique() > 1 and b.nunique() > 1 else float("nan")


def _tenths(tokens: int) -> NDArray[np.int_]:
    """Tenth of the response that each of its n tokens is in: floor(10 t / n) for token t. Computed with integers, since the
    float 0.6 is not 6 / 10; the page's filter by position does the same."""
    return POSITION_BINS * np.arange(tokens) // max(tokens, 1)


def _binned(values: NDArray[np.float64], edges: Sequence[float]) -> pd.Categorical:
    """Bin of each value, lower edge included; the last bin includes its upper edge, and NaN is in no bin."""
    places = np.clip(np.searchsorted(np.asarray(edges), values, side="right") - 1, 0, len(edges) - 2)
    places = np.where(np.isnan(values), -1, places)  # in no bin
    names = [f"{low:g}-{high:g}" if np.isfinite(high) else f"over {low:g}" for low, high in pairwise(edges)]
    return pd.Categorical.from_codes(places, names)


# ---- in color


def levels(row: AnnotatedResponse, mask: NDArray[np.float32]) -> list[str]:
    """Level of each token: critical, wavering, plain or untried. Raises ValueError if the mask does not belong to the row."""
    if len(mask) != len(row.response_ids):
        raise ValueError(f"response {row.response_id}: mask of {len(mask)} for {len(row.response_ids)} tokens")
    if not row.alt_outcome.shape[1]:
        return ["critical" if weight > 0 else "plain" for weight in mask]
    first_fails = np.isin(row.alt_outcome[:, 0], [Outcome.WRONG, Outcome.CUT_OFF]) & (row.verdict == "right")
    return [
        "critical" if weight > 0 else "wavering" if fails else "plain" if tried else "untried"
        for weight, fails, tried in zip(mask, first_fails, row.tried_R, strict=True)
    ]


def visible(text: str) -> str:
    """A line break is shown as a sign, so that its color is visible, followed by the break."""
    return printable(text).replace("\n", "⏎\n")


def terminal(row: AnnotatedResponse, mask: NDArray[np.float32]) -> Text:
    """The response with critical tokens on red and wavering ones on yellow; print it with a rich console."""
    shown = Text()
    for text, level in zip(token_texts(row), levels(row, mask), strict=True):
        shown.append(visible(text) or END, style=_TERMINAL_STYLES[level])
    return shown


def meanings(word: str) -> dict[str, tuple[str, str]]:
    """Level -> its name and meaning. word: as `deciding_word` gives it."""
    found = {level: (level, meaning) for level, meaning in LEVELS.items()}
    if word == "turning":
        del found["wavering"]
        found["critical"] = (word, TURNING)
    return found


def legend(word: str = "critical") -> Text:
    shown = Text()
    for level, (name, meaning) in meanings(word).items():
        shown.append(f" {name} ", style=_TERMINAL_STYLES[level])
        shown.append(f" {meaning}   ")
    return shown


# ---- the annotation behind the runs


@dataclass(frozen=True, slots=True)
class Evidence:
    """An annotation as a report shows it.

    Args:
        rows: Rows of the annotation.
        mask: Critical tokens of each row.
        decode: Decoding function of the tokenizer.
        manifest: Of the annotation, with its cost.
        most: Maximal number of responses in the token explorer.
    """

    rows: Sequence[AnnotatedResponse]
    mask: Mask
    decode: Decode
    manifest: Mapping[str, Any] = field(default_factory=dict)
    most: int = 2000

    @property
    def word(self) -> str:
        """What the picked tokens are called: critical, or turning in responses that end wrong."""
        return deciding_word(self.rows)


def token_evidence(
    comparisons: Sequence[Comparison],
    *,
    annotation: str,
    annotations_dir: str,
    tokenizer: Path | None,
    num_alternatives: int | None,
    responses: int,
) -> Evidence | None:
    """The content of the token explorer: the requested annotation, else the one that the runs were trained on, if it is on this
    machine.

    Args:
        comparisons: Comparisons of the runs.
        annotation: Name or folder, "" = the runs' own.
        annotations_dir: Folder that names are looked up in.
        tokenizer: Folder of tokenizer.json, None to look in the annotating model and the exports.
        num_alternatives: K of the critical mask that colors, None = two, or what the rows hold.
        responses: Maximal number in the explorer.

    Raises:
        ReportError, StoreError, MaskError: What was requested cannot be shown.
    """
    trained_on = [run.results.data or {} for comparison in comparisons for run in comparison.runs]
    name = annotation or next((data["annotation"] for data in trained_on if data.get("annotation")), "")
    if not name:
        return None
    try:
        store = AnnotationStore(find_annotation(name, annotations_dir=annotations_dir))
        manifest = store.manifest()
        if not annotation and manifest["fingerprint_sha256"] not in {data.get("fingerprint") for data in trained_on}:
            raise ReportError(f"{store.folder} is not the annotation of that name that the runs were trained on")
        decode = _decoder(tokenizer, manifest, comparisons)
        rows: list[AnnotatedResponse] = store.rows()
        _require_evidence(store, manifest)
        mask = _mask(rows, alternatives=num_alternatives)
    except (ReportError, StoreError, MaskError) as error:
        if annotation:
            raise
        print(printable(f"No token explorer: {error}"), file=sys.stderr)
        return None
    return Evidence(rows, mask, decode, manifest, responses)


def _mask(rows: Sequence[AnnotatedResponse], *, alternatives: int | None) -> Mask:
    """The mask that colors, with this many alternatives, else two, or one if the rows hold no more. Raises MaskError for rows
    that it cannot read."""
    held = min((row.alt_outcome.shape[1] for row in rows), default=USUAL_ALTERNATIVES)
    mask = Deciding(num_alternatives=min(USUAL_ALTERNATIVES, max(held, 1)) if alternatives is None else alternatives)
    for row in rows:
        mask(row)
    return mask


def _require_evidence(store: AnnotationStore, manifest: Mapping[str, Any]) -> None:
    if holds_rollouts(manifest):
        raise ReportError(
            f"{store.folder} holds rollouts, of which no token was tried, and the token explorer shows critical tokens; their "
            "verdicts and pass rates are in its card (README.md)"
        )


def _decoder(folder: Path | None, manifest: Mapping[str, Any], comparisons: Sequence[Comparison]) -> Decode:
    """From the named folder, else the annotating model, else the first run with an export: all share the tokenizer."""
    exports = [run.folder / "export" for comparison in comparisons for run in comparison.runs]
    path = str((((manifest.get("config") or {}).get("model")) or {}).get("path") or "")
    candidates = [folder] if folder else [_folder_of(path), *exports]
    found = next((f / "tokenizer.json" for f in candidates if (f / "tokenizer.json").is_file()), None)
    if found is None:
        raise ReportError("no tokenizer.json beside the runs' exports; give its folder with --tokenizer <model folder>")
    tokenizer = tokenizers.Tokenizer.from_file(str(found))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def _folder_of(path: str) -> Path:
    """Tokenizer of the annotating model, if it is on this machine; the hub is not searched."""
    package, _, name = path.partition(":")
    if package != "package":
        return Path(path or "nowhere")
    if name != DISTRIBUTION:
        return SHIPPED.parent / name
    try:
        return converted_folder()
    except UserError as error:
        raise ReportError(str(error)) from error
