"""A local fake hub for reading: serves the files of one data set at named revisions."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


def commit_of(revision: str) -> str:
    return _oid(revision)


@contextmanager
def reading_hub(repo_id: str, revisions: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Its endpoint. revisions: branch or tag -> path -> text; each has a commit of its own."""
    commits = {name: commit_of(name) for name in revisions}
    files = {**revisions, **{commits[name]: texts for name, texts in revisions.items()}}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            self.do_GET(body=body)

        def do_GET(self, body: str = "") -> None:
            path = unquote(urlsplit(self.path).path)
            api, file = f"/api/datasets/{repo_id}", f"/datasets/{repo_id}/resolve/"
            if path.startswith(file):
                revision, _, name = path.removeprefix(file).partition("/")
                return self.file(revision, name)
            if path != api and not path.startswith(f"{api}/"):
                return self.answer({"error": "Repository not found"}, status=404, code="RepoNotFound")
            kind, _, rest = path.removeprefix(api).strip("/").partition("/")
            revision, _, folder = (rest or "main").partition("/")
            if revision not in files:
                return self.answer({"error": f"Invalid rev id: {revision}"}, status=404, code="RevisionNotFound")
            entries = self.entries(revision)
            if kind == "tree":
                found = [entry for entry in entries if not folder or entry["path"].startswith(f"{folder}/")]
                return self.answer(found)
            if kind == "paths-info":
                asked = [part.partition("=")[2] for part in unquote(body).split("&")]
                asked = json.loads(body)["paths"] if body.startswith("{") else asked
                return self.answer([entry for entry in entries if entry["path"] in asked])
            names = [{"rfilename": name} for name in files[revision]]
            sha = commits.get(revision, revision)
            return self.answer({"id": repo_id, "sha": sha, "siblings": names, "private": False, "tags": []})

        def entries(self, revision: str) -> list[dict[str, Any]]:
            texts = files[revision]
            folders = {name.rpartition("/")[0] for name in texts} - {""}
            return [{"type": "directory", "path": name, "oid": _oid(name)} for name in sorted(folders)] + [
                {"type": "file", "path": name, "oid": _oid(text), "size": len(text.encode())}
                for name, text in texts.items()
            ]

        def file(self, revision: str, name: str) -> None:
            if name not in files.get(revision, {}):
                return self.answer({"error": "Entry not found"}, status=404, code="EntryNotFound")
            content = files[revision][name].encode()
            sha = commits.get(revision, revision)
            self.send(content, kind="text/plain", ETag=f'"{_oid(files[revision][name])}"', X_Repo_Commit=sha)

        def answer(self, value: Any, *, status: int = 200, code: str = "") -> None:
            headers = {"X_Error_Code": code} if code else {}
            self.send(json.dumps(value).encode(), kind="application/json", status=status, **headers)

        def send(self, content: bytes, *, kind: str, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
