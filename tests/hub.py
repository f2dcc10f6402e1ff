"""A local fake hub: serves the four requests that publishing makes, and records the uploads."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """State of the fake hub.

    created: bodies of requests to create a repository. files: path -> content, of all repositories together. authorization:
    header of each request. refuses: error status that answers every request, 0 for none.
    """

    endpoint: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    authorization: set[str | None] = field(default_factory=set)
    refuses: int = 0


@contextmanager
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

        def do_GET(self) -> None:
            if "/tree/" not in self.path:
                return self.answer({}, status=404)
            return self.answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in state.files])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.authorization.add(self.headers.get("Authorization"))
            if self.path == "/api/repos/create":
                made = json.loads(body)
                private = made.get(
                    "private", made.get("visibility") == "private"
                )  # depends on the version of the client
                state.created.append({**made, "private": private})
                kind = "datasets/" if made.get("type") == "dataset" else ""
                name = f"{made['organization']}/{made['name']}" if made.get("organization") else made["name"]
                return self.answer({"url": f"{state.endpoint}/{kind}{name}", "id": name})
            if "/preupload/" in self.path:
                wanted = json.loads(body)["files"]
                plan = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer({"files": [{"path": one["path"], **plan} for one in wanted]})
            if "/commit/" in self.path:
                state.places.append(self.path)
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        state.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "deletedFile":
                        del state.files[line["value"]["path"]]
                repository = self.path.removeprefix("/api/").removeprefix("models/").split("/commit/")[0]
                address = f"{state.endpoint}/{repository}/commit/{'0' * 40}"
                return self.answer({"commitOid": "0" * 40, "commitUrl": address})
            return self.answer({"errors": [], "warnings": []})  # of a card's header

        def answer(self, value: Any, *, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(state.refuses or status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
