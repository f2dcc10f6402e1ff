"""A headless Chromium over its DevTools protocol, using only the standard library: a WebSocket client of one connection.

with Browser.started(folder) as browser:
    browser.open(path)
    browser.evaluate("document.title")
    browser.errors          console errors, exceptions, refused loads so far
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DEADLINE_S = 30.0


def executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class WebSocket:
    """Text frames to and from a server on this machine (RFC 6455); no extensions."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=DEADLINE_S)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._exactly(1)
        assert b" 101 " in head.split(b"\r\n")[0], head

    def send(self, text: str) -> None:
        data, mask = text.encode(), os.urandom(4)
        size = len(data)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
        if size >= 2**16:
            length = b"\xff" + struct.pack(">Q", size)
        self._socket.sendall(b"\x81" + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def receive(self) -> str:
        parts = []
        while True:
            first, second = self._exactly(2)
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self._exactly(2 if size == 126 else 8))
            data = self._exactly(size)
            if first & 0x0F in (0, 1):  # text and its continuations; pings of a local server need no answer
                parts.append(data)
                if first & 0x80:
                    return b"".join(parts).decode()

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            assert more, "the browser closed the connection"
            data += more
        return data


@dataclass
class Browser:
    """One page. errors: all errors of the console."""

    socket: WebSocket
    errors: list[str] = field(default_factory=list)
    _number: int = 0

    @classmethod
    @contextmanager
    def started(cls, folder: Path, *, width: int = 1280, height: int = 900) -> Iterator[Browser]:
        """Start a browser. folder: empty folder for its profile."""
        program = executable()
        assert program is not None, "no chromium; ask executable() first"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        options += [f"--user-data-dir={folder}", f"--window-size={width},{height}", "--disable-dev-shm-usage"]
        with (folder / "chromium.log").open("w") as log:
            process = subprocess.Popen([program, *options, "about:blank"], stdout=log, stderr=log)
        try:
            browser = cls(WebSocket("127.0.0.1", *_page(folder, process)))
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.call(f"{domain}.enable")
            yield browser
            browser.socket.close()
        finally:
            process.terminate()
            process.wait(timeout=DEADLINE_S)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self.socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.receive())
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait for a true value and return it; an element does not count, since it has no JSON value."""
        end = time.monotonic() + DEADLINE_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"waited {DEADLINE_S:.0f} s for {expression}; errors: {self.errors}"
            time.sleep(0.05)
        return value

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("location.protocol === 'file:' && document.readyState === 'complete'")

    def hover(self, selector: str) -> None:
        """Move the pointer to the middle of an element's first line."""
        quoted = json.dumps(selector)
        at = self.evaluate(
            f"(() => {{ const r = document.querySelector({quoted}).getClientRects()[0];"
            " return [r.left + r.width / 2, r.top + r.height / 2] })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])

    def press(self, key: str) -> None:
        codes = {"Tab": 9, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
        code = {**codes, "ArrowDown": 40}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def prefer(self, scheme: str) -> None:
        """Set the color scheme. scheme: light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def _note(self, message: dict[str, Any]) -> None:
        method, found = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(found["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(found["args"])[:500])
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.errors.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not found["request"]["url"].startswith(("file:", "data:")):
            self.errors.append(f"request to {found['request']['url']}")
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {found['message']}")


def _page(folder: Path, process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """(port, path) of the first page's WebSocket."""
    end = time.monotonic() + DEADLINE_S
    path = folder / "DevToolsActivePort"
    while time.monotonic() < end and process.poll() is None:
        lines = path.read_text().splitlines() if path.is_file() else []
        if lines:
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=DEADLINE_S) as answer:
                pages = [target for target in json.load(answer) if target["type"] == "page"]
            if pages:
                return int(lines[0]), "/" + pages[0]["webSocketDebuggerUrl"].split("/", 3)[3]
        time.sleep(0.05)
    raise AssertionError(
        f"chromium did not start (exit status {process.poll()}): {(folder / 'chromium.log').read_text()}"
    )
