"""Runs an entry point and kills its own process (SIGKILL) at a named point.

python tests/kill_driver.py <point> <stage> <arguments of the stage>      (point: a name below, or step=<optimizer step>)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.entry import run


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, *, when: Callable[..., bool] = lambda *args, **kwargs: True, call: int = 1) -> None:
    """Kill this process before the `call`-th call of owner.name for which `when` is true."""
    original = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += when(*args, **kwargs)
        if calls == call:
            die()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def unit_record(path: Path, *args: object) -> bool:
    return path.name == "00001.json"


def generating() -> None:
    """In the second unit, after twenty of its continuations."""
    from cft.annotation import counterfactual

    begin = counterfactual.CounterfactualSource.__post_init__

    def begun(source: Any) -> None:
        begin(source)
        begun.sources += 1  # type: ignore[attr-defined]

    begun.sources = 0  # type: ignore[attr-defined]
    counterfactual.CounterfactualSource.__post_init__ = begun  # type: ignore[method-assign]
    in_second = lambda *args: begun.sources == 2  # type: ignore[attr-defined]  # noqa: E731
    before(counterfactual.CounterfactualSource, "receive", when=in_second, call=20)


def appending() -> None:
    """The files of the second unit are written, its record is not started."""
    from cft.annotation import store

    before(store, "write_json", when=unit_record)


def committing() -> None:
    """The record of the second unit has its temporary name."""
    before(os, "replace", when=lambda source, target: unit_record(Path(target)))


def replacing() -> None:
    """The record of the second unit is replaced; the files of the old one still exist."""
    before(Path, "unlink", when=lambda path, **_: path.name.startswith("00001.") and path.suffix == ".parquet")


def in_step(number: int) -> None:
    """In the forward pass of an optimizer step, counted from 1."""
    from cft.training.module import CausalLMModule

    before(CausalLMModule, "training_step", when=lambda module, batch, index: module.global_step == number - 1)


def epoch_validated() -> None:
    """The second epoch is trained and validated; its checkpoint is not written."""
    from cft.training.module import CausalLMModule

    before(CausalLMModule, "on_train_epoch_end", when=lambda module: module.current_epoch == 1)


def checkpoint_half_written() -> None:
    """The checkpoint after the sixth step is written, but still has its temporary name."""
    before(os, "replace", when=lambda source, target: Path(target).name == "step-00000006.ckpt")


POINTS = {
    f.__name__: f for f in (generating, appending, committing, replacing, epoch_validated, checkpoint_half_written)
}

if __name__ == "__main__":
    point, _, number = sys.argv[1].partition("=")
    if number:
        in_step(int(number))
    else:
        POINTS[point]()
    ended = run(*sys.argv[2:])
    print(ended.out, ended.err, sep="\n")
    raise SystemExit(ended.status)
