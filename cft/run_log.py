"""run.log: what a job said, with time and level, in the folder of its run.

What is printed on the console is recorded at INFO, warnings of Python at WARNING, the error that ends the job at ERROR. The
folder is known late, and nothing may be written to it before every check has passed: until `write_to`, records are kept in
memory. Other modules may log by `logging.getLogger(__name__)`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

RUN_LOG = "run.log"
log = logging.getLogger("cft")
_active: list[MemoryHandler] = []
_PACKAGE = Path(__file__).parent


class _File(logging.FileHandler):
    """A full disk ends a run where its results are written, not for its log."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Said by nobody."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def recording() -> Iterator[None]:
    """Around a job."""
    kept = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    before, shown, formatted = log.level, warnings.showwarning, warnings.formatwarning

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        log.warning("%s: %s", category.__name__, message)
        shown(message, category, *args, **kwargs)

    def text_of(message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any) -> str:
        if category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
            return f"Warning: {message}\n"  # the package's own, for users: without file and line
        return formatted(message, category, filename, *args, **kwargs)

    log.setLevel(logging.INFO)
    log.addHandler(kept)
    _active.append(kept)
    warnings.showwarning, warnings.formatwarning = show, text_of
    try:
        yield
    except BaseException as error:
        log.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        if warnings.showwarning is show:
            warnings.showwarning, warnings.formatwarning = shown, formatted
        _active.remove(kept)
        log.removeHandler(kept)
        log.setLevel(before)
        file = kept.target
        kept.close()  # writes what is left, where there is a file, and forgets it
        if file is not None:
            file.close()


def write_to(folder: Path) -> None:
    """From now on, and what was recorded before, to <folder>/run.log; a resumed run appends. Outside a job: nothing."""
    for kept in _active[-1:]:
        if kept.target is None:
            folder.mkdir(parents=True, exist_ok=True)
            file = _File(folder / RUN_LOG, encoding="utf-8", delay=True)
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            kept.setTarget(file)
            kept.flush()
            kept.capacity = 1
