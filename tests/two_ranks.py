"""Two ranks of a distributed run without two new interpreters: forks of a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 300


def on_two_ranks(work: Callable[..., None], *args: Any) -> None:
    """Run work(*args) on both ranks, with the environment that a launcher would give Lightning."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.gradient_driver", "tests.scale_driver", "tests.weights_driver"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_as_rank, args=(rank, port, work, args), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT_S)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0], f"exit codes of the ranks: {codes} (None: still running); their errors are above"


def _as_rank(rank: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in where.items()}
    work(*args)
