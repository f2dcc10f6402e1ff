"""A number per training example that a loss keeps from one epoch to the next. It is part of every checkpoint.

    decide   in the forward pass, the rank that holds an example computes its next value
    commit   once per step, before the optimizer step, all ranks receive the new values

An example occurs once per epoch, and so at most once per step. Ranks therefore set values of different examples, and summing
them over ranks is an all-gather: exact to the last bit, and the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cft.errors import BadValue


class ExampleState:
    """The state of all training examples; empty before `begin`.

    Args:
        initial: value of an example before it is first seen.
    """

    def __init__(self, *, initial: float) -> None:
        self.initial = initial
        self.values_E = torch.empty(0, dtype=torch.float64)
        self._decided_2E = torch.empty(
            2, 0, dtype=torch.float64
        )  # of the current step: new values, and 1 for each example that has one

    def begin(self, examples: int) -> None:
        """Reset to `examples` examples with the initial value."""
        self.values_E = torch.full((examples,), self.initial, dtype=torch.float64)
        self._decided_2E = torch.zeros(2, examples, dtype=torch.float64)

    def of(self, example_G: Tensor) -> Tensor:
        """[G] float64: current values of the examples."""
        self._to(example_G.device)
        return self.values_E[example_G]

    def decide(self, example_G: Tensor, value_G: Tensor) -> None:
        """Set the next values of the examples, which take effect at the next `commit`."""
        self._to(example_G.device)
        self._decided_2E[0, example_G] = value_G.double()
        self._decided_2E[1, example_G] = 1.0

    def commit(self, reduced: Callable[[Tensor], Tensor], *, device: torch.device) -> None:
        """Apply the next values of all ranks. Collective.

        Args:
            reduced: sums a tensor on `device` over all ranks; every rank gets the result.
            device: device of this rank.
        """
        self._to(device)
        value_E, decided_E = reduced(self._decided_2E)
        self.values_E = torch.where(decided_E > 0, value_E, self.values_E)
        self._decided_2E.zero_()

    def _to(self, device: torch.device) -> None:
        self.values_E, self._decided_2E = self.values_E.to(device), self._decided_2E.to(device)

    def saved(self) -> Tensor:
        """[E] copy of the values for a checkpoint, on the CPU."""
        return self.values_E.detach().cpu().clone()

    def load(self, values_E: Tensor) -> None:
        """Restore the values of `saved`. Raises BadValue if the number of examples differs."""
        if len(values_E) != len(self.values_E):
            raise BadValue(
                f"resume: the checkpoint holds the loss's state of {len(values_E)} problems, but these rows have "
                f"{len(self.values_E)}; restore the rows the run started with, or start a new run"
            )
        self.values_E = values_E.to(self.values_E)
