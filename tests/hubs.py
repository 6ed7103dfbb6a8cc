"""A hub on loopback that speaks the layout of the real one: files by revision, large ones by a redirect, what a
repository holds, and refusals with their codes."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from components.models import hub

TOKEN = "hf_accepted"  # of an account that has accepted the licences of gated repositories
LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """repositories: `owner/name` -> branch, tag or commit -> file -> bytes. asked: method and path of each request."""

    address: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def publish(self, name: str, files: dict[str, bytes], revision: str = "main", *, gated: bool = False) -> str:
        """Put a commit under `revision`; returns the commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        for key in (revision, commit):
            self.repositories.setdefault(name, {})[key] = files
            self.commits[name, key] = commit
        if gated:
            self.gated.add(name)
        return commit

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        parts = path.lstrip("/").split("/")
        if parts[0] == "large":
            return 200, {}, self._find_large(parts[1])
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        rest = parts[4:] if is_api else parts[2:]
        if name not in self.repositories:
            return _refuse(404, "RepoNotFound")
        if name in self.gated and token != f"Bearer {TOKEN}":
            return _refuse(403 if token else 401, "GatedRepo")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in self.repositories[name]:
            return _refuse(404, "RevisionNotFound")
        files, commit = self.repositories[name][revision], self.commits[name, revision]
        if is_api:
            return 200, {"Content-Type": "application/json"}, _describe(name, commit, files, rest[:1] == ["tree"])
        return self._find_file("/".join(rest[2:]), files, commit)

    def _find_file(self, file: str, files: dict[str, bytes], commit: str) -> tuple[int, dict[str, str], bytes]:
        if file not in files:
            return _refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        digest = hashlib.sha256(files[file]).hexdigest()
        facts = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if not file.endswith(LARGE):
            return 200, facts, files[file]
        elsewhere = self.address.replace("127.0.0.1", "localhost")  # large files come from another host
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(files[file]))}
        return 302, {**facts, **linked, "Location": f"{elsewhere}/large/{digest}"}, b""

    def _find_large(self, digest: str) -> bytes:
        trees = [files for revisions in self.repositories.values() for files in revisions.values()]
        every = [data for files in trees for data in files.values()]
        return next(data for data in every if hashlib.sha256(data).hexdigest() == digest)


def _describe(name: str, commit: str, files: dict[str, bytes], tree: bool) -> bytes:
    if tree:
        rows = [{"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in files.items()]
        return json.dumps(rows).encode()
    return json.dumps({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}).encode()


def _refuse(status: int, code: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, b""


@contextmanager
def serve_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client asks, as with HF_ENDPOINT, and an empty cache at `cache`."""
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_answer(with_body=False)

        def do_GET(self) -> None:
            self.send_answer(with_body=True)

        def send_answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            served.asked.append(f"{self.command} {path}")
            token = self.headers.get("Authorization", "")
            status, headers, body = (200, {}, b"") if path == "/" else served.answer(path, token)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        served.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        ask_at(served.address, cache, monkeypatch)
        yield served
        server.shutdown()


def ask_at(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub's client ask `address`, as HF_ENDPOINT, HF_HOME and no token do before a process starts."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.ask_in_time.cache_clear()


def go_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no hub answers; the cache stays."""
    from huggingface_hub import constants

    ask_at("http://127.0.0.1:9", Path(constants.HF_HUB_CACHE), monkeypatch)
