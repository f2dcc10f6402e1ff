"""Rollouts: every response that the model gives to a problem, right or not, with its verdict; nothing is tried in its place.

Of each problem one greedy response, or `num_samples` sampled ones. A row is one of them: its verdict is right, wrong, cut off
or undecided, and log-probs and entropies are the model's own, of the whole distribution at temperature 1. A sample's random
numbers are a function of (seed, problem, number), so that they depend on no batch, shard or worker.

    pass rate of a problem = right / decided responses

Cut off ones are decided, as wrong; undecided ones are not, and the rate is NaN where none is decided. What makes them:
`cft/annotation/rolling_out.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cft.types import GREEDY, GREEDY_SAMPLE, AnnotatedResponse, Outcome, ResponseVerdict, Sampling

ROLLOUTS: Literal["rollouts"] = "rollouts"  # the choice of `responses`
COLUMNS = ("verdict", "sample")  # that rows of rollouts have beyond the usual ones
VERDICTS: dict[Outcome, ResponseVerdict] = {
    Outcome.RIGHT: "right",
    Outcome.WRONG: "wrong",
    Outcome.CUT_OFF: "cut off",
    Outcome.UNDECIDED: "undecided",
}


@dataclass(frozen=True, slots=True)
class RolloutDesign:
    """How responses are drawn. num_samples: of each problem, 0 = one greedy response."""

    num_samples: int
    temperature: float
    top_p: float
    seed: int

    def settings(self) -> dict[str, Any]:
        """For the fingerprint. JSON."""
        return asdict(self) if self.num_samples else {"num_samples": 0}

    def samples(self) -> range:
        """The numbers of a problem's responses."""
        return range(self.num_samples) if self.num_samples else range(GREEDY_SAMPLE, GREEDY_SAMPLE + 1)

    def sampling(self, problem_id: str, sample: int) -> Sampling:
        if sample == GREEDY_SAMPLE:
            return GREEDY
        return Sampling(self.temperature, self.top_p, self.seed, f"rollout\x1f{problem_id}\x1f{sample}")


def holds_rollouts(manifest: Mapping[str, Any]) -> bool:
    """Whether an annotation holds rollouts. manifest: of it."""
    return ROLLOUTS in manifest["fingerprint"]


def pass_rate(verdicts: Iterable[str]) -> float:
    """Of one problem: right of the decided responses; NaN where none is decided."""
    decided = [verdict == "right" for verdict in verdicts if verdict != "undecided"]
    return sum(decided) / len(decided) if decided else float("nan")


def pass_rates(rows: Iterable[AnnotatedResponse]) -> dict[str, float]:
    """By problem id. rows: all of the problems' rollouts."""
    verdicts: dict[str, list[str]] = {}
    for row in rows:
        verdicts.setdefault(row.problem_id, []).append(row.verdict)
    return {problem_id: pass_rate(found) for problem_id, found in verdicts.items()}
