"""A number that a loss keeps of each training example from one epoch to the next: part of every checkpoint.

    next value of an example     decided in the forward pass of the rank that holds the example
    all ranks know it            once a step, before the optimizer moves: `commit`

An example occurs once an epoch and so at most once a step: what the ranks decided is of different examples, and a sum over
the ranks of the decided ones is an all-gather, exact to the last bit and the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cft.errors import BadValue


class ExampleState:
    """Of no example before `begin`.

    initial: of an example that was not seen yet.
    """

    def __init__(self, *, initial: float) -> None:
        self.initial = initial
        self.values_E = torch.empty(0, dtype=torch.float64)
        self._decided_2E = torch.empty(
            2, 0, dtype=torch.float64
        )  # of the step under way: values, and 1 where one was decided

    def begin(self, examples: int) -> None:
        """All examples as not seen yet."""
        self.values_E = torch.full((examples,), self.initial, dtype=torch.float64)
        self._decided_2E = torch.zeros(2, examples, dtype=torch.float64)

    def of(self, example_G: Tensor) -> Tensor:
        """[G] float64."""
        self._to(example_G.device)
        return self.values_E[example_G]

    def decide(self, example_G: Tensor, value_G: Tensor) -> None:
        """Their next values, which hold from the next `commit` on."""
        self._to(example_G.device)
        self._decided_2E[0, example_G] = value_G.double()
        self._decided_2E[1, example_G] = 1.0

    def commit(self, reduced: Callable[[Tensor], Tensor], *, device: torch.device) -> None:
        """reduced: the sum over all ranks, on every rank, of a tensor on the rank's device. Collective."""
        self._to(device)
        value_E, decided_E = reduced(self._decided_2E)
        self.values_E = torch.where(decided_E > 0, value_E, self.values_E)
        self._decided_2E.zero_()

    def _to(self, device: torch.device) -> None:
        self.values_E, self._decided_2E = self.values_E.to(device), self._decided_2E.to(device)

    def saved(self) -> Tensor:
        """[E] for a checkpoint, on the CPU: the next step leaves it alone."""
        return self.values_E.detach().cpu().clone()

    def load(self, values_E: Tensor) -> None:
        """What `saved` gave. Raises BadValue if it is of another number of examples."""
        if len(values_E) != len(self.values_E):
            raise BadValue(
                f"resume: the checkpoint holds the loss's state of {len(values_E)} problems, these rows have "
                f"{len(self.values_E)}; bring back the rows that the run began with, or start a new run"
            )
        self.values_E = values_E.to(self.values_E)
