"""Another rank of a distributed run: python -m cft.stages.rank_process <file saved by the launcher>

It trains with the config of the job that started it, and ends when that process ends.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def main(path: Path) -> None:
    die_with_parent()
    from cft.cli.exit_status import reported_in_rank
    from cft.stages import train
    from cft.training.distributed.launcher import read_rank

    config, job, start = read_rank(path)
    with reported_in_rank():
        train.train(config, job, start)


def die_with_parent() -> None:
    """Let the kernel kill this process when rank 0 dies, since it would wait for rank 0 forever."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
