"""Masks: which response tokens carry loss, and with what static weight. Pure functions of stored rows.

    mask(row) -> [R] float32, 0 = not eligible

A mask never touches the model; what depends on live log-probs is a weighting (`cft/weightings/token.py`). To add one, write a
class with a keyword-only constructor and `__call__`, and a yaml in conf/mask/ that names it. Those that rank tokens or
learn from the whole data set are in `cft/masks/ranked.py`, those of another tokenizer's annotation in
`cft/masks/projected.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cft.errors import UserError
from cft.ranges import AtLeastOne, Fraction, in_range
from cft.types import AnnotatedResponse, Outcome

Weights = NDArray[np.float32]


class MaskError(UserError, ValueError):
    """The stored evidence cannot answer what the mask asks; the message names the row and the remedy."""


class TooLittleEvidence(MaskError):
    """The annotation was made with less than the mask asks for, which cft annotate can mend.

    afresh: its overrides for a new annotation that holds enough.
    """

    def __init__(self, found: str, *, remedy: str, afresh: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.found, self.afresh = found, afresh


class Mask(Protocol):
    """needs: names of stored scores that rows must bring (`row.scores`). fit: called once with all training rows, for
    statistics over the data set; what it learns depends on nothing else, nor on the order of the rows. facts: what it read
    and learnt, for the run's results. JSON. knows: whether there is evidence about the row at all."""

    needs: tuple[str, ...]

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None: ...

    def facts(self) -> dict[str, Any]: ...

    def knows(self, row: AnnotatedResponse) -> bool: ...

    def __call__(self, row: AnnotatedResponse) -> Weights: ...


class RowMask:
    """What most masks are: functions of one row's evidence alone.

    score_arguments: constructor arguments that name stored scores, so that the config check knows what it needs.
    """

    needs: tuple[str, ...] = ()
    score_arguments: tuple[str, ...] = ()

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        """Nothing to learn."""

    def facts(self) -> dict[str, Any]:
        return {}

    def knows(self, row: AnnotatedResponse) -> bool:
        """Whether there is evidence about the row. Of one without, no token is eligible, in the complement neither."""
        del row
        return True


class MaskOf(RowMask):
    """A mask made from another one, whose needs and statistics it shares."""

    def __init__(self, inner: Mask) -> None:
        self.inner = inner
        self.needs = inner.needs

    def fit(self, rows: Sequence[AnnotatedResponse]) -> None:
        self.inner.fit(rows)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()

    def knows(self, row: AnnotatedResponse) -> bool:
        return self.inner.knows(row)


class All(RowMask):
    """Every response token, EOS included: plain supervised fine-tuning."""

    def __call__(self, row: AnnotatedResponse) -> Weights:
        return np.ones(len(row.response_ids), dtype=np.float32)


class Critical(RowMask):
    """Tokens whose every alternative ends wrong (CFT, arXiv 2510.10974, section 3).

    Args:
        num_alternatives: how many of the stored alternatives count, in order of rank; at least 1. The paper's default is 2.
        rule: "all" alternatives must end wrong (the paper), or "any" one of them, or "fraction": the weight is the fraction of
            them that end wrong, so tokens whose every alternative ends right are not eligible. "any" and "fraction" need an
            annotation in which every alternative was tried.
        cut_off: whether a continuation that met the token limit without an explicit answer counts as "wrong" (the paper) or
            "not_wrong". Undecided verdicts never count as wrong.

    Raises:
        TooLittleEvidence: the annotation holds fewer alternatives, or left some untried that decide.
    """

    @in_range
    def __init__(
        self,
        *,
        num_alternatives: AtLeastOne = 2,
        rule: Literal["all", "any", "fraction"] = "all",
        cut_off: Literal["wrong", "not_wrong"] = "wrong",
    ) -> None:
        self.num_alternatives = num_alternatives
        self.rule = rule
        self.cut_off = cut_off

    def __call__(self, row: AnnotatedResponse) -> Weights:
        k = self.num_alternatives
        afresh = f"num_alternatives={k}{'' if self.rule == 'all' else ' short_circuit=false'}"
        stored = row.alt_outcome.shape[1]
        if stored < k:
            raise TooLittleEvidence(
                f"response {row.response_id}: mask.num_alternatives={k}, but the annotation holds {stored}",
                remedy=f"extend it with: cft annotate annotation=<name> num_alternatives={k} (and its other "
                "arguments as before)",
                afresh=afresh,
            )
        outcome_RK = row.alt_outcome[:, :k]
        fails_RK = outcome_RK == Outcome.WRONG
        if self.cut_off == "wrong":
            fails_RK |= outcome_RK == Outcome.CUT_OFF
        untried_RK = outcome_RK == Outcome.UNTRIED
        if self.rule == "any":
            open_R = untried_RK.any(1) & ~fails_RK.any(1)
            verdict_R = fails_RK.any(1)
        elif self.rule == "fraction":
            open_R = untried_RK.any(1)
            verdict_R = fails_RK.mean(1)
        else:
            open_R = untried_RK.any(1) & (fails_RK | untried_RK).all(1)
            verdict_R = fails_RK.all(1)
        if open_R.any():
            raise TooLittleEvidence(
                f"response {row.response_id}: {int(open_R.sum())} positions are undecided under mask.rule={self.rule}, "
                "since annotation stopped at the first right alternative",
                remedy="fill the gaps with: cft annotate annotation=<name> complete=true (and its other arguments "
                "as before)",
                afresh=afresh,
            )
        return verdict_R.astype(np.float32)


class RandomLike(MaskOf):
    """As many tokens of each row as `like` picks, drawn at random: the control for "fewer tokens" alone.

    Args:
        like: the mask whose number of tokens is matched, row by row.
        seed: the draw is a function of (seed, response id): the same on any rank, in any order.
    """

    def __init__(self, *, like: Mask, seed: int) -> None:
        super().__init__(like)
        self.seed = seed

    def __call__(self, row: AnnotatedResponse) -> Weights:
        length, count = len(row.response_ids), int((self.inner(row) > 0).sum())
        seed = _hash("random_like", str(self.seed), row.response_id)
        chosen = np.random.default_rng(seed).choice(length, size=count, replace=False)
        weights = np.zeros(length, dtype=np.float32)
        weights[chosen] = 1.0
        return weights


class Complement(MaskOf):
    """The tokens that `of` leaves out; none of a row that it knows nothing about."""

    def __init__(self, *, of: Mask) -> None:
        super().__init__(of)

    def __call__(self, row: AnnotatedResponse) -> Weights:
        left_out = (self.inner(row) == 0).astype(np.float32)
        return left_out if self.inner.knows(row) else np.zeros_like(left_out)


class Numeric(RowMask):
    """Tokens whose text holds a digit (the paper's ablation)."""

    def __call__(self, row: AnnotatedResponse) -> Weights:
        texts = (row.response[start:end] for start, end in row.char_span.tolist())
        return np.array([any(c.isdigit() for c in text) for text in texts], dtype=np.float32)


class Prefix(RowMask):
    """The first tokens of a response (UPFT, arXiv 2503.02875). The EOS of a shorter response is not learned.

    Args:
        num_tokens: tokens from the start of the response, at least 1. The paper uses 8, 32 or 128, by model.
        full_fraction: fraction of the responses, 0 to 1, that count whole, EOS included; chosen by a hash of their ids.
    """

    @in_range
    def __init__(self, *, num_tokens: AtLeastOne, full_fraction: Fraction = 0.0) -> None:
        self.num_tokens, self.full_fraction = num_tokens, full_fraction

    def __call__(self, row: AnnotatedResponse) -> Weights:
        length = len(row.response_ids)
        if _hash("full", row.response_id) / 2**64 < self.full_fraction:
            return np.ones(length, dtype=np.float32)
        position = np.arange(length)
        ends = row.finish == "stop"
        return ((position < self.num_tokens) & (position < length - ends)).astype(np.float32)


class AnswerSpan(RowMask):
    """Tokens that overlap the final answer: the first matching group of the pattern's last match.

    Args:
        pattern: a regular expression, searched in the response's text.
        with_end: whether the EOS that ends such a response counts too (SFTKey's second stage, arXiv 2512.21017).

    Raises:
        MaskError: `pattern` is not a regular expression.
    """

    def __init__(self, *, pattern: str, with_end: bool = False) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise MaskError(f"mask.pattern: not a regular expression ({error}): {pattern!r}") from error
        self.with_end = with_end

    def __call__(self, row: AnnotatedResponse) -> Weights:
        matches = list(self.pattern.finditer(row.response))
        if not matches:
            return np.zeros(len(row.response_ids), dtype=np.float32)
        last = matches[-1]
        group = next((i for i in range(1, (last.re.groups or 0) + 1) if last.group(i) is not None), 0)
        weights = overlap(row.char_span, *last.span(group))
        if self.with_end and row.finish == "stop":
            weights[-1] = 1.0
        return weights


def overlap(char_span: NDArray[np.int32], start: int, end: int) -> Weights:
    """[R] 1 where a token's characters overlap [start, end)."""
    return ((char_span[:, 0] < end) & (char_span[:, 1] > start)).astype(np.float32)


def mask_weights(mask: Mask, row: AnnotatedResponse) -> Weights:
    """The mask's weights of one row, checked. Raises MaskError naming the row on a wrong length or a bad weight."""
    weights = np.asarray(mask(row), dtype=np.float32)
    if weights.shape != (len(row.response_ids),):
        raise MaskError(
            f"response {row.response_id}: {type(mask).__name__} gave weights of shape {weights.shape}, "
            f"expected ({len(row.response_ids)},), one per response token"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise MaskError(f"response {row.response_id}: {type(mask).__name__} gave a negative, infinite or NaN weight")
    return weights


def _hash(*parts: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest())


def critical_fraction(rows: Iterable[AnnotatedResponse], *, num_alternatives: int) -> float:
    """Fraction of response tokens that are critical under the paper's rule, 0-1; NaN without rows."""
    mask = Critical(num_alternatives=num_alternatives)
    masks = [mask(row) for row in rows]
    return float(np.concatenate(masks).mean()) if masks else float("nan")
