"""What libraries say unasked: advertisements, hints that do not apply, bars inside our own bars."""

from __future__ import annotations

import logging
import warnings

_NOT_OURS_TO_FIX = (
    r".*does not have many workers.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Experiment logs directory .* exists and is not empty.*",  # the run folder also holds our own files
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*is currently logging on step.*",
    r".*resuming from a checkpoint that ended before the epoch ended.*",  # ours carries the position in the epoch
    r".*have no `val_dataloader`.*",
    r".*gradient_checkpointing. is deprecated.*",  # TRL's own settings
    r".*sync_dist=True.*",  # what we log is reduced over the ranks before
)


def quiet_libraries() -> None:
    """Leave warnings that a user can act on; silence the rest."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOT_OURS_TO_FIX:
        warnings.filterwarnings("ignore", message=message)
