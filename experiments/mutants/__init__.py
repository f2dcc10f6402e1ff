"""The defects that `make mutations` plants, each with the test that must detect it."""

from __future__ import annotations

from experiments.mutants.annotation import ANNOTATION, ENGINES
from experiments.mutants.measuring import CONFIGURATION, GRADING, STATISTICS
from experiments.mutants.methods import LOSS, MASKS, WEIGHTINGS
from experiments.mutants.mutant import Mutant
from experiments.mutants.training import DATA, RESUME, TRAINING

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (
    *LOSS,
    *MASKS,
    *WEIGHTINGS,
    *TRAINING,
    *RESUME,
    *DATA,
    *ENGINES,
    *ANNOTATION,
    *GRADING,
    *STATISTICS,
    *CONFIGURATION,
)
