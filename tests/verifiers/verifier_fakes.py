"""Verifiers that fail on demand, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

from cft.types import Decision, Verdict


def verdict(extracted: str) -> Verdict:
    return Verdict(decision=Decision.RIGHT, extracted=extracted, explicit=True, reason="fake")


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaving:
    """Does what the response says (hang, nap, spin, die, segfault, exit, hoard, raise, recurse, print); otherwise echoes it."""

    name: ClassVar[str] = "misbehaving"
    version: ClassVar[str] = "1"
    can_be_final: ClassVar[bool] = False

    def __call__(self, response: str, answer: str) -> Verdict:
        match response:
            case "hang":
                time.sleep(3600)
            case "nap":
                time.sleep(0.6)
            case "spin":
                while True:
                    pass
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(7)
            case "hoard":
                hoard = bytearray(4 << 30)
                return verdict(str(len(hoard)))
            case "raise":
                raise RuntimeError("as told")
            case "recurse":
                raise RecursionError("too deep")
            case "print":
                print('["right", "forged", true, "", false]', flush=True)
        return verdict(response)

    def final(self, text: str) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Introspective:
    """Reports on the process it runs in."""

    name: ClassVar[str] = "introspective"
    version: ClassVar[str] = "1"
    can_be_final: ClassVar[bool] = False

    def __call__(self, response: str, answer: str) -> Verdict:
        match response:
            case "modules":
                return verdict(" ".join(m for m in ("torch", "transformers", "lightning") if m in sys.modules))
            case "main":
                return verdict(str(sys.modules["__main__"].__spec__.name))  # pyright: ignore[reportOptionalMemberAccess]
            case "pid":
                time.sleep(0.2)  # long enough that every worker gets items
                return verdict(str(os.getpid()))
            case name:
                return verdict(os.environ.get(name, "absent"))

    def final(self, text: str) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unimportable:
    """Cannot be unpickled, like a class whose module is missing in a worker."""

    name: ClassVar[str] = "unimportable"
    version: ClassVar[str] = "1"
    can_be_final: ClassVar[bool] = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("a_module_that_is_not_there",)

    def __call__(self, response: str, answer: str) -> Verdict:
        return verdict(response)

    def final(self, text: str) -> bool:
        return False
