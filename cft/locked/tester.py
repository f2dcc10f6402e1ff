"""The process that runs a test against a program in another process, and reports the result on a descriptor of its own.

Names that the test takes from the program are proxies: calls, attributes and items are requested, and plain data comes back. A
proxy equals nothing but itself, so a program cannot redefine equality. The test's own code (the text of the problem, its
imports, its helpers) runs here, and no name of the program replaces it.

    {"decision": "right" | "wrong" | "undecided", "reason": ...}
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from typing import Any

from cft.locked.values import Channel, Gone, Unpassable, decoded, encoded

_UNREADABLE = "what the program returned cannot be read"
_ENDED = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException")


class Ended(BaseException):
    """The program gave no result; tests must not catch it."""

    def __init__(self, decision: str, reason: str) -> None:
        super().__init__(reason)
        self.decision, self.reason = decision, reason


class ProgramError(Exception):
    """The program raised an exception that is not built in."""


class Connection:
    """Requests to the program.

    calls: number of calls. ended: why no more requests are possible; it remains set if the test catches the exception.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel, self.calls = channel, 0
        self.ended: Ended | None = None
        self.remotes: dict[int, Remote] = {}

    def ask(self, *request: Any) -> list[Any]:
        if self.ended:
            raise self.ended
        try:
            self.channel.send(list(request))
            answer = self.channel.receive()
        except Gone as error:
            raise self.end("gone", f"no answer from the program: {error}") from None
        except (ValueError, RecursionError):
            raise self.end("wrong", _UNREADABLE) from None
        if not isinstance(answer, list) or len(answer) < 2 or answer[0] not in ("value", "raised"):
            raise self.end("wrong", _UNREADABLE)
        if answer[0] == "raised":
            raise self._error(str(answer[1]), str(answer[2]) if len(answer) > 2 else "")
        return answer[1:]

    def end(self, decision: str, reason: str) -> Ended:
        self.ended = Ended(decision, reason)
        return self.ended

    def _error(self, name: str, text: str) -> BaseException:
        """Raises the program's exception in the test."""
        if name in _ENDED:
            return self.end("wrong", f"the program ended itself: {name} {text}".strip())
        if name == "MemoryError":
            return self.end("undecided", "out of memory")
        if name == "Unpassable":
            return self.end("undecided", f"the program returned what does not go from process to process: {text}")
        if name == "ModuleNotFoundError":
            return self.end("undecided", f"{text}; verifier.modules names more")
        kind = getattr(builtins, name, None)
        try:
            if isinstance(kind, type) and issubclass(kind, Exception):
                return kind(text)
        except TypeError:  # UnicodeDecodeError and others need more arguments
            pass
        return ProgramError(f"{name}: {text}")

    def value(self, *request: Any) -> Any:
        return self.plain(self.ask(*request)[0])

    def plain(self, value: Any) -> Any:
        try:
            return decoded(value, lambda number: self.remotes.setdefault(number, Remote(self, number)))
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            raise self.end("wrong", _UNREADABLE) from None

    def typed(self, kind: type[Any], *request: Any) -> Any:
        value = self.value(*request)
        if type(value) is not kind:
            raise self.end("wrong", _UNREADABLE)
        return value

    def sent(self, value: Any) -> Any:
        return encoded(value, _number)

    def call(self, number: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        self.calls += 1
        sent = [self.sent(one) for one in arguments], {name: self.sent(one) for name, one in keywords.items()}
        value, after = self.ask("call", number, *sent)
        # Changes that the program made to its arguments are applied to the test's.
        for mine, before, now in zip(
            (*arguments, *keywords.values()), (*sent[0], *sent[1].values()), after, strict=False
        ):
            if now != before and isinstance(mine, list | dict | set | bytearray):
                _become(mine, self.plain(now))
        return self.plain(value)


class Remote:
    """Proxy of a value in the program that is not plain data."""

    __slots__ = ("_connection", "_number")

    def __init__(self, connection: Connection, number: int) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._connection.call(self._number, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._connection.value("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._connection.ask("set", self._number, name, self._connection.sent(value))

    def __getitem__(self, key: Any) -> Any:
        return self._connection.value("item", self._number, self._connection.sent(key))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._connection.typed(list, "items", self._number))

    def __len__(self) -> int:
        return self._connection.typed(int, "len", self._number)

    def __bool__(self) -> bool:
        return self._connection.typed(bool, "bool", self._number)

    def __str__(self) -> str:
        return self._connection.typed(str, "str", self._number)


def run(channel: Channel, task: dict[str, Any]) -> dict[str, str]:
    """task: fields of `cft.locked.session.Trial`."""
    connection = Connection(channel)
    names: dict[str, Any] = {"__name__": "test"}
    try:
        checks = compile(task["test"], "<test>", "exec")
        exec(compile(task["setup"], "<setup>", "exec"), names)
    except BaseException as error:  # noqa: BLE001 - whatever a test raises
        return _said("undecided", f"the test itself does not run: {_shown(error)}")
    try:
        connection.ask("load", task["program"])
        for name in task["names"]:
            names[name] = connection.value("name", name)
        if entry := task["entry"]:
            names["candidate"] = names[entry]
        exec(checks, names)
    except Ended as ended:
        return _said(ended.decision, ended.reason)
    except Unpassable as error:
        return _said("undecided", f"the test hands over what does not go from process to process: {error}")
    except MemoryError:
        return _said("undecided", "out of memory")
    except AssertionError as error:
        return _said("wrong", f"an assertion failed: {_line(error, task['test'])}")
    except BaseException as error:  # noqa: BLE001 - whatever a test raises
        return _said("wrong", _shown(error))
    if ended := connection.ended:
        return _said(ended.decision, ended.reason)
    if not connection.calls:
        return _said("undecided", "the test never called the program")
    return _said("right", "all assertions hold")


def _number(value: Any) -> int:
    if type(value) is Remote:
        return object.__getattribute__(value, "_number")
    raise Unpassable(type(value).__name__)


def _become(mine: Any, now: Any) -> None:
    if type(now) is not type(mine):
        return
    if isinstance(mine, list | bytearray):
        mine[:] = now
    else:
        mine.clear()
        mine.update(now)


def _line(error: BaseException, source: str) -> str:
    trace, line = error.__traceback__, 0
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<test>" else line
        trace = trace.tb_next
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or node.lineno):
            return (ast.get_source_segment(source, node) or "")[:200]
    return _shown(error)


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _said(decision: str, reason: str) -> dict[str, str]:
    return {"decision": decision, "reason": reason}
