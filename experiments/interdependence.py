"""Do two tokens that are not critical individually matter together?   python -m experiments.interdependence

Critical tokens are found by replacing one token at a time. Here two non-critical tokens of a response, at s < t, are
replaced at once, each by its own rank-2 alternative a:

    joint      y_1 .. y_{s-1}  a_s  y_{s+1} .. y_{t-1}  a_t  then greedy
    kept       y_1 .. y_{s-1}  a_s  y_{s+1} .. y_{t-1}  y_t  then greedy: the effect of keeping the original's tokens alone
    single     a_s alone or a_t alone, followed by greedy decoding: the annotation's own outcomes

Pairs are drawn uniformly from each response's pairs of non-critical tokens (not critical: some alternative ends right; the
end of the response is excluded, and so are alternatives that would end it at s). `harmless` pairs are those in which both
single replacements end right, so that errors come from the pair: joint minus kept is the effect of the second token.
A cut-off continuation counts as wrong, as in the mask. `either_single_wrong` is the fraction of pairs of which one or both
replacements end wrong alone, for comparison; `single_wrong` is a fraction of tokens. Intervals are 95 %, bootstrap over
responses, with one additional response at each end of the range as in `cft/evaluation/intervals.py`, so that none wrong of 29
does not give an interval of zero width. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cft.annotation.counterfactual import ListSource
from cft.annotation.store import AnnotationStore, find_annotation
from cft.console import progress
from cft.evaluation.intervals import RATE, Interval, interval_of, pull
from cft.files import write_json
from cft.masks import Critical
from cft.types import GREEDY, AnnotatedResponse, Budget, Engine, Fork, Outcome, TokenSequence
from cft.verifiers.grader import Grader

Kind = Literal["joint", "kept"]
DISTANCES = ((1, 1), (2, 5), (6, 15), (16, 10_000))
RESAMPLES = 10_000
WRONG = (Outcome.WRONG, Outcome.CUT_OFF)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two positions of response number `row`, s < t."""

    row: int
    s: int
    t: int


def pairs_of(
    row: AnnotatedResponse, number: int, *, count: int, eos: frozenset[int], rng: np.random.Generator
) -> list[Pair]:
    """Draw at most `count` different pairs of non-critical tokens."""
    free = [int(t) for t in np.flatnonzero(Critical()(row) == 0) if int(row.response_ids[t]) not in eos]
    every = [(s, t) for s in free for t in free if s < t and int(row.alt_ids[s, 0]) not in eos]
    chosen = rng.choice(len(every), size=min(count, len(every)), replace=False) if every else []
    return [Pair(number, *every[i]) for i in sorted(chosen)]


def forks_of(row: AnnotatedResponse, pairs: Sequence[Pair]) -> list[Fork]:
    """Both forks of each pair, from a sequence with the first replacement followed by the original's tokens."""
    prompt, sequences = len(row.prompt_ids), {}
    forks = []
    for pair in pairs:
        if pair.s not in sequences:
            ids = np.concatenate([row.prompt_ids, row.response_ids])
            ids[prompt + pair.s] = row.alt_ids[pair.s, 0]
            sequences[pair.s] = TokenSequence(ids, prompt)
        for kind, token in (("joint", row.alt_ids[pair.t, 0]), ("kept", row.response_ids[pair.t])):
            forks.append(Fork(sequences[pair.s], prompt + pair.t, int(token), GREEDY, (pair, kind)))
    return forks


def replace_pairs(
    engine: Engine, rows: Sequence[AnnotatedResponse], pairs: Sequence[Pair], *, grader: Grader, budget: Budget
) -> dict[tuple[Pair, Kind], bool]:
    """Whether each continuation ends wrong; undecided ones do not."""
    by_row: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_row.setdefault(pair.row, []).append(pair)
    forks = [fork for number, some in by_row.items() for fork in forks_of(rows[number], some)]
    with progress("Replacing pairs", total=len(forks)) as bar:
        done = []
        for key, completion in engine.run(ListSource(forks), budget=budget):
            done.append((key, completion))
            bar.advance()
    verdicts = grader([(completion, rows[key[0].row].answer) for key, completion in done])  # type: ignore[index]
    return {key: outcome in WRONG for (key, _), (outcome, _) in zip(done, verdicts, strict=True)}  # type: ignore[misc]


def share(wrong: NDArray[np.float64], rows: NDArray[np.int_], *, difference: bool = False, seed: int = 0) -> Interval:
    """Mean over pairs with a bootstrap over responses, whose pairs stay together. difference: values are from -1 to 1; an
    additional response is added only in a direction that does not occur."""
    _, index = np.unique(rows, return_inverse=True)
    sums, counts = np.bincount(index, weights=wrong), np.bincount(index)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    means = (drawn @ sums) / np.maximum(drawn @ counts, 1)
    within = (-1.0, 1.0) if difference else RATE
    ends = [end for end in within if not (difference and (wrong * end > 0).any())]
    means += pull(means, problems=len(sums), ends=ends, rng=rng)
    return interval_of(float(wrong.mean()), means, level=0.95, within=within)


def summary(
    rows: Sequence[AnnotatedResponse], pairs: Sequence[Pair], wrong: dict[tuple[Pair, Kind], bool]
) -> dict[str, Any]:
    """Fractions with intervals: of all pairs, and of harmless ones also by distance."""
    numbers = np.array([pair.row for pair in pairs])
    alone = np.array([[rows[p.row].alt_outcome[at, 0] in WRONG for at in (p.s, p.t)] for p in pairs], dtype=float)
    joint = np.array([wrong[pair, "joint"] for pair in pairs], dtype=float)
    kept = np.array([wrong[pair, "kept"] for pair in pairs], dtype=float)
    right = np.array([[rows[p.row].alt_outcome[at, 0] == Outcome.RIGHT for at in (p.s, p.t)] for p in pairs])
    harmless = np.logical_and(right[:, 0], right[:, 1])
    distance = np.array([pair.t - pair.s for pair in pairs])

    def of(values: NDArray[np.float64], chosen: Any, *, difference: bool = False) -> dict[str, float] | None:
        return share(values[chosen], numbers[chosen], difference=difference).as_dict() if chosen.any() else None

    every = np.ones(len(pairs), dtype=bool)
    near = [
        (low, high, np.logical_and.reduce([harmless, distance >= low, distance <= high])) for low, high in DISTANCES
    ]
    return {
        "pairs": len(pairs),
        "single_wrong": of(alone.mean(1), every),
        "either_single_wrong": of(alone.max(1), every),
        "joint_wrong": of(joint, every),
        "harmless_pairs": int(harmless.sum()),
        "harmless_joint_wrong": of(joint, harmless),
        "harmless_kept_wrong": of(kept, harmless),
        "harmless_joint_minus_kept": of(joint - kept, harmless, difference=True),
        "harmless_by_distance": [
            {"from": low, "to": high, "pairs": int(at.sum()), "joint_wrong": of(joint, at), "kept_wrong": of(kept, at)}
            for low, high, at in near
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--annotation", default="tiny_arith", help="name or folder; its model is loaded")
    parser.add_argument("--annotations-dir", default="outputs/annotations", help="folder of annotations by name")
    parser.add_argument("--responses", type=int, default=600, help="drawn at random")
    parser.add_argument("--pairs", type=int, default=5, help="of each response")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/interdependence.json"))
    arguments = parser.parse_args()
    started = time.monotonic()
    store = AnnotationStore(find_annotation(arguments.annotation, annotations_dir=arguments.annotations_dir))
    manifest, everything = store.manifest(), store.rows()
    rng = np.random.default_rng(arguments.seed)
    chosen = rng.choice(len(everything), size=min(arguments.responses, len(everything)), replace=False)
    rows = [everything[i] for i in sorted(chosen)]
    engine, grader, eos = _parts(manifest)
    pairs = [pair for i, row in enumerate(rows) for pair in pairs_of(row, i, count=arguments.pairs, eos=eos, rng=rng)]
    if not pairs:
        raise SystemExit(f"{store.folder}: no response has two non-critical tokens")
    budget = Budget(manifest["fingerprint"]["decoding"]["max_new_tokens"])
    found = summary(rows, pairs, replace_pairs(engine, rows, pairs, grader=grader, budget=budget))
    found |= {"annotation": store.folder.name, "responses": len(rows), "seconds": round(time.monotonic() - started, 1)}
    write_json(arguments.out, found)
    print(json.dumps(found))


def _parts(manifest: dict[str, Any]) -> tuple[Engine, Grader, frozenset[int]]:
    """The engine, the grader and the EOS ids of the annotation; the weights must be the same."""
    from cft.config.build import build
    from cft.engines.shared_prefix import SharedPrefixEngine
    from cft.models.load import eos_ids, load_causal_lm, load_tokenizer, weights_hash

    spec, verifier = build(manifest["config"]["model"]), build(manifest["config"]["verifier"])
    tokenizer, model = load_tokenizer(spec), load_causal_lm(spec)
    if weights_hash(model) != manifest["fingerprint"]["model"]["weights"]:
        raise SystemExit(f"model {spec.path}: its weights are not those that made the annotation")
    grader = Grader(tokenizer, lambda items: [verifier(text, answer) for text, answer in items])
    ends = eos_ids(model, tokenizer)
    return SharedPrefixEngine(model, ends), grader, frozenset(ends)


if __name__ == "__main__":
    main()
