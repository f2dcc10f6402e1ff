"""The process that programs and tests are forked from: `python -m cft.locked.nursery <descriptor>`, started by `session.py`.

It is a fresh interpreter without secrets that has preloaded what programs import; it never sees a program. On its socket:

    -> at the start: {"lock": what a locked process could still do, "missing": modules that it could not load}
    <- {"spawn": "program" | "tester", "cpu_s": .., "memory_bytes": ..} with the copy's descriptors      -> {"pid": ..}
    <- {"end": [pid, ..], "patience_s": ..}       -> {"ended": [{"code", "signal", "cpu_s", "running"}, ..]}

It ends, with all of its children, when its socket closes.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter
from typing import Any

from cft.locked import program, tester
from cft.locked.lock import NoLock, lock, not_refused
from cft.locked.values import Channel, Gone

# Modules that programs import, and modules that these load at first use. Nothing can be loaded once a process is locked.
MODULES = """
    abc array ast base64 binascii bisect builtins calendar cmath codecs collections collections.abc colorsys contextlib
    copy csv dataclasses datetime decimal difflib enum errno fractions functools gc hashlib heapq hmac html inspect io
    ipaddress itertools json keyword locale logging math numbers operator os os.path pathlib pprint queue random re
    reprlib sched secrets shlex signal statistics string stringprep struct sys tempfile textwrap threading time timeit
    token tokenize traceback types typing unicodedata unittest urllib.parse uuid warnings weakref zlib zoneinfo _strptime
    encodings.ascii encodings.cp1252 encodings.idna encodings.latin_1 encodings.punycode encodings.utf_16 encodings.utf_32
    encodings.unicode_escape encodings.raw_unicode_escape encodings.rot_13 encodings.hex_codec
"""


class _Nothing:
    """The last finder: files cannot be read, so a module that is not loaded is not available."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> None:
        raise ModuleNotFoundError(f"the locked process has no module {name!r}", name=name)


def main(descriptor: int, modules: Sequence[str]) -> None:
    commands = socket.socket(fileno=descriptor)
    missing = _load([*MODULES.split(), *modules])
    commands.send(json.dumps({"lock": _probe(), "missing": missing}).encode())
    alive: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(commands, 1 << 16, 4)
        if not data:
            break
        command = json.loads(data)
        if "spawn" in command:
            pid = _spawn(command, descriptors)
            alive.add(pid)
            answer: dict[str, Any] = {"pid": pid}
        else:
            alive -= set(command["end"])
            answer = {"ended": [_end(pid, patience_s=command["patience_s"]) for pid in command["end"]]}
        commands.send(json.dumps(answer).encode())
    for pid in alive:
        _end(pid)
    os._exit(0)  # without cleaning up


def _load(modules: Sequence[str]) -> list[str]:
    """Uses once everything that reads files at first use. Returns the modules that are missing."""
    missing = []
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever an import raises
            missing.append(f"{name}: {type(error).__name__}: {error}")
    time.localtime()
    for algorithm in ("md5", "sha1", "sha256", "sha512"):
        hashlib.new(algorithm, b"").hexdigest()
    gc.collect()
    gc.freeze()
    return missing


def _spawn(command: dict[str, Any], descriptors: Sequence[int]) -> int:
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    try:
        _prepare()
        lock(cpu_s=command["cpu_s"], memory_bytes=command["memory_bytes"], keep=tuple(descriptors))
        if command["spawn"] == "program":
            program.serve(Channel(descriptors[0]))
        else:
            to_program, to_session = (Channel(descriptor) for descriptor in descriptors)
            to_session.send(tester.run(to_program, to_session.receive()))
    finally:
        os._exit(0)


def _prepare() -> None:
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, _Nothing]
    sys.path_hooks.clear()
    sys.argv[:] = [""]
    warnings.simplefilter("ignore")
    random.seed(0)


def _end(pid: int, *, patience_s: float = 0.0) -> dict[str, Any]:
    """How a child ended. patience_s: time that it may take from closing its descriptors to its end."""
    deadline = time.monotonic() + patience_s
    found, status, usage = os.wait4(pid, os.WNOHANG)
    while not found and time.monotonic() < deadline:
        time.sleep(0.001)
        found, status, usage = os.wait4(pid, os.WNOHANG)
    running = not found
    if running:
        os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    return {
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "running": running,
    }


def _probe() -> list[str]:
    """Forbidden operations that a locked process can still do, tried in one."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            channel = Channel(theirs.fileno())
            _prepare()
            try:
                lock(cpu_s=5, memory_bytes=1 << 27, keep=(theirs.fileno(),))
            except (NoLock, OSError, ValueError) as error:
                channel.send([f"begin at all: {error}"])
            else:
                channel.send(not_refused())
        finally:
            os._exit(0)
    theirs.close()
    try:
        return Channel(ours.fileno()).receive()
    except (Gone, ValueError):
        return ["come to an end"]
    finally:
        ours.close()
        _end(pid)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
