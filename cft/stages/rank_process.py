"""One further process of a distributed run: python -m cft.stages.rank_process <file saved by the launcher>

It has no command line and no Hydra job of its own: it trains on the config of the job that started it, and ends with it.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def main(path: Path) -> None:
    die_with_parent()
    job = OmegaConf.load(path)
    schema = OmegaConf.structured(HydraConf)
    OmegaConf.set_struct(schema, False)  # groups bring keys of their own
    cfg = OmegaConf.create({})
    cfg.hydra = OmegaConf.merge(schema, job.hydra)
    HydraConfig.instance().set_config(cfg)
    from cft.cli.exit_status import reported_in_rank
    from cft.stages.train import train
    from cft.training.checkpointing.resume import Start

    start = Start(Path(job.start.folder), Path(job.start.checkpoint) if job.start.checkpoint else None)
    with reported_in_rank():
        train(job.config, start)


def die_with_parent() -> None:
    """A process whose first rank was killed would wait for it for ever."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
