"""A worker that does as its items say, without a model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any


class Toy:
    def __init__(self, device: str) -> None:
        self.facts = {"device": device, "folder": os.getcwd()}

    def work(self, item: int, report: Callable[[Any], None]) -> int:
        report(f"at {item}")
        if item == 3:
            raise ValueError("three")
        if item == 4:
            os._exit(1)
        time.sleep(0.2)
        return item * item

    def close(self) -> None:
        pass


def make_toy(device: str) -> Toy:
    return Toy(device)
