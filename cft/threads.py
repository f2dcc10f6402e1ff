"""How many CPU threads a model is worth.

Matrix products of a model of a million parameters are too small to share: on two idle cores two threads gave 1.2 times
the tokens/s of one, and on two busy cores a tenth, since OpenMP threads spin while they wait for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALL_MODEL_PARAMETERS = 10_000_000


def fit_threads(model: PreTrainedModel) -> None:
    """One thread for a small model on the CPU; otherwise torch's own choice stands (OMP_NUM_THREADS)."""
    import torch

    if model.device.type == "cpu" and model.num_parameters() < SMALL_MODEL_PARAMETERS:
        torch.set_num_threads(1)
