"""Who may ask a server on this machine: checks of tokens, of Host and of Origin. Neither torch nor FastAPI here.

Every account of a machine can reach its loopback addresses, and so can every web page in a browser there. Without a
token a request is accepted only with a Host of this machine, because otherwise a foreign DNS name may point here, and
with no Origin but the server's own, because otherwise another page sends it.
"""

import hmac
import ipaddress
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.errors import WorkspaceError

HOSTS = ("127.0.0.1", "localhost", "::1")
LEAST_TOKEN = 16  # characters
#: What a token does not protect: probes, and pages that hold nothing of a domain.
OPEN = ("/", "/page.css", "/page.js", "/docs", "/openapi.json", "/ping", "/health")
OPEN_FOLDERS = ("/swagger/", "/v2/health/")

Scope = MutableMapping[str, Any]


def find_stranger(scope: Scope, headers: Mapping[str, str]) -> str | None:
    """Why a request is refused as foreign; None for requests of this machine's programs and the server's own pages."""
    host = headers.get("host", "")
    if _read_host(host) not in HOSTS:
        return "This server answers only to the names of its own machine."
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "The request comes from another page; only this server's own pages may send requests."
    if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
        goes_there = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if not goes_there or scope.get("method") != "GET":
            return "The request comes from another page; only this server's own pages may send requests."
    return None


def is_same(given: str, wanted: str) -> bool:
    """Compares secrets in constant time."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def is_open(scope: Scope) -> bool:
    """Whether a request needs no token."""
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith(OPEN_FOLDERS))


def has_token(headers: Mapping[str, str], token: str) -> bool:
    """Whether the header is `Authorization: Bearer TOKEN`."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and is_same(given.strip(), token)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at this name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_token(file: Path) -> str:
    """The token in a file, without space around it. Raises WorkspaceError where there is none, or too short a one."""
    hint = f"Create one: `(umask 077; openssl rand -hex 32 > {file})`."
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise WorkspaceError(f"token file {file}", expected="a readable text file", found=why, hint=hint) from None
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        expected = f"a token of at least {LEAST_TOKEN} ASCII characters without spaces, in one line"
        raise WorkspaceError(f"token file {file}", expected=expected, found=f"{len(token)} characters", hint=hint)
    return token


def _read_host(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
