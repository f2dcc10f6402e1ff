"""Data sets in sequence with several seeds: the matrix of accuracies and its measures, for `experiments/systems.py`.

A[i, j] is the accuracy on test set j after training i of T; measures as in `cft/report/continual.py`, but over seeds too. Each
is a weighted sum of cells, and so a value per seed and problem: problem p of a measure combines problem p of each test set,
which are drawn independently. The row of a maximum is taken as given, separately for each seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cft.evaluation.intervals import Interval, paired_two_way_bootstrap, two_way_bootstrap

Matrix = NDArray[np.float64]  # [S, T + 1, T, P]: 1 for a right response, else 0; row 0 is before any training
MEASURES = ("mean accuracy", "mean accuracy along the way", "forgetting", "backward transfer")


def matrix(right: Mapping[tuple[int, str], str], data: Sequence[str], *, seeds: Sequence[int]) -> Matrix:
    """right: "1" or "0" per problem, by seed and step (base-on-B, A-on-B). data: names in the order of training."""
    rows = ["base", *data]
    signs = [[[list(right[seed, f"{row}-on-{test}"]) for test in data] for row in rows] for seed in seeds]
    return np.array(signs, dtype=np.float64)


def measures(right: Matrix) -> dict[str, NDArray[np.float64]]:
    """[S, P] of each measure."""
    seeds, rows, tests, _ = right.shape
    last = right[:, -1]
    along = [right[:, i, :i].mean(1) for i in range(1, rows)]
    best = 1 + right[:, 1:].mean(3).argmax(1)  # [S, T], the first of equals
    highest = np.array([[right[s, best[s, j], j] for j in range(tests)] for s in range(seeds)])
    own = np.stack([right[:, j + 1, j] for j in range(tests)], 1)
    found = (last.mean(1), np.mean(along, 0), (highest - last)[:, :-1].mean(1), (last - own)[:, :-1].mean(1))
    return dict(zip(MEASURES, found, strict=True))


def table(systems: Mapping[str, Matrix], data: Sequence[str], *, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Markdown: the accuracies of each system, its measures, and for each pair the measures of the first minus the second."""
    yield f"| system | after | {' | '.join(f'on {test}' for test in data)} |"
    yield "|---|---|" + "---|" * len(data)
    for name, right in systems.items():
        for i, trained in enumerate(["no training", *data]):
            cells = [plain(two_way_bootstrap(right[:, i, j])) for j in range(len(data))]
            yield f"| {f'`{name}`' if i == 0 else ''} | {trained} | {' | '.join(cells)} |"
    yield ""
    yield f"| system | seeds | {' | '.join(MEASURES)} |"
    yield "|---|---|" + "---|" * len(MEASURES)
    for name, right in systems.items():
        cells = [two_way_bootstrap(table_SP, rate=False) for table_SP in measures(right).values()]
        yield f"| `{name}` | {len(right)} | {' | '.join(map(plain, cells))} |"
    for first, second in pairs:
        if not {first, second} <= set(systems):
            continue
        seeds = min(len(systems[first]), len(systems[second]))
        a, b = (measures(systems[name][:seeds]).values() for name in (first, second))
        cells = [signed(paired_two_way_bootstrap(*tables, pair_seeds=True)) for tables in zip(a, b, strict=True)]
        yield f"| `{first}` minus `{second}` | {seeds} | {' | '.join(cells)} |"


def plain(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
