"""A recipe file over the network: https only (http from loopback), in limited time, and not to just anywhere.

Slow to import, and few recipes are fetched: only `sources.py` asks for it, when a name is an address.
"""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from http.client import HTTPException, HTTPResponse, InvalidURL, responses
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    build_opener,
)

from ft.recipes.errors import FtError, NotFoundError, UsageError

FETCH_TIMEOUT_S: Final = 20.0
"""For one file, from the look-up of its server's name to its last byte."""
TOTAL_TIMEOUT_S: Final = 60.0
"""For all files that one recipe is made of."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS: Final = {"https": 443, "http": 80}
_AS_THEY_ARE: Final = ":/?#[]@!$&'()*+,;=%"
"""What an address may hold; everything else, `größe.yml`, is percent-encoded."""
_PIN: Final = re.compile(r"sha256=([0-9a-f]{64})")
_HTTPS_ONLY: Final = "a recipe is fetched over https only"
_NO_LOGIN: Final = "an address with a user or a password is not fetched"


class Fetcher:
    """Fetches what one recipe is made of: each address once, all together in `TOTAL_TIMEOUT_S`.

    `admit` is asked about each address before something is sent, and may raise.
    """

    def __init__(self, max_bytes: int, admit: Callable[[str], None]) -> None:
        self._max_bytes = max_bytes
        self._admit = admit
        self._found: dict[str, tuple[str, bytes]] = {}
        self._ends: float | None = None

    def fetch(self, name: str, *, server: str = "") -> tuple[str, bytes]:
        """Where the file is in the end, and its bytes, one more than `max_bytes` if there are more.

        `#sha256=HEX` at the end of the address says what must be there. `server` is the address of the file that
        names this one: then nothing is fetched from any other server.
        Raises: UsageError if it may not be fetched or is not what it should be, NotFoundError if it cannot be.
        """
        address, fragment = urldefrag(name)
        shown = public(address)
        refusal = _refusal(address)
        if refusal:
            hint = "https://…" if refusal is _HTTPS_ONLY else "curl -u USER -o recipe.yml ADDRESS"
            raise UsageError(f"{shown}: {refusal}", hint=hint)
        if server and _origin(address) != _origin(server):
            raise UsageError(f"{shown} {_elsewhere(server)}")
        pin = _PIN.fullmatch(fragment.lower())
        if fragment and pin is None:
            raise UsageError(
                f"{shown}: expected #sha256=<64 hex digits> after the address, or nothing"
            )
        location, data = self._once(address, server)
        found = sha256(data).hexdigest()
        if pin is not None and found != pin[1]:
            raise UsageError(f"{shown} has changed: its sha256 is {found}, expected {pin[1]}")
        if data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
            hint = "on GitHub that is the link behind the button Raw"
            raise UsageError(f"{shown} is a web page, not a recipe", hint=hint)
        return location, data

    def _once(self, address: str, server: str) -> tuple[str, bytes]:
        if address in self._found:
            location, data = self._found[address]
            # Who asked before was perhaps allowed to be led further.
            if server and _origin(location) != _origin(server):
                raise UsageError(
                    f"{public(address)} leads to {public(location)}, which {_elsewhere(server)}"
                )
            return location, data
        self._admit(public(address))
        now = time.monotonic()
        self._ends = now + TOTAL_TIMEOUT_S if self._ends is None else self._ends
        deadline = min(now + FETCH_TIMEOUT_S, self._ends)
        self._found[address] = _get(address, server, deadline, self._max_bytes)
        return self._found[address]


def beside(address: str, name: str) -> str:
    """The address that `name` stands for in the file at `address`. Raises: UsageError."""
    try:
        return urljoin(address, name)
    except ValueError:
        raise UsageError(f"{name!a} is no address") from None


def public(address: str) -> str:
    """`address` without user, password, query and fragment, which may hold a secret: for messages."""
    parts = _split(address)
    if parts is None:
        return "(no address)"  # Nobody knows which part of it is secret.
    host = parts.netloc.rpartition("@")[2]
    shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
    return shown if shown.isprintable() else ascii(shown)


def without_secrets(address: str) -> str:
    """`address` as somebody may see it who named it: a query is `…`, the pin stays."""
    parts = _split(address)
    if parts is None or ("@" not in parts.netloc and not parts.query):
        return public(address) if parts is None else address
    query = "?…" if parts.query else ""
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    return f"{public(address)}{query}{fragment}"


def _split(address: str) -> SplitResult | None:
    """None for what is no address: `https://[::1/r.yml`, `https://host:port/r.yml`."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _refusal(address: str) -> str:
    """Why nothing is fetched from there; empty if it may be."""
    parts = _split(address)
    if parts is None or not parts.hostname:
        return _HTTPS_ONLY
    is_here = parts.scheme == "http" and parts.hostname in _LOOPBACK
    if parts.scheme != "https" and not is_here:
        return _HTTPS_ONLY
    return _NO_LOGIN if "@" in parts.netloc else ""


def _is_loopback(address: str) -> bool:
    """Whether the name of the server says that it is this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rpartition(".")[2] == "localhost"


def _origin(address: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what makes a server this server."""
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _elsewhere(server: str) -> str:
    parts = urlsplit(server)
    origin = public(urlunsplit((parts.scheme, parts.netloc, "", "", "")))
    return (
        f"is on another server: a recipe from {origin} extends only what lies there. "
        "Save it as a file to extend both"
    )


class _SameRules(HTTPRedirectHandler):
    """Follows only to where a recipe may be fetched from: never from https to http, nor home from elsewhere."""

    def __init__(self, address: str, server: str) -> None:
        self._address = address
        self._server = server

    def redirect_request(self, *arguments: Any) -> Request | None:
        _, reply, *_, target = arguments
        why = self._why_not(target)
        if why:
            reply.close()
            raise UsageError(f"{public(self._address)} leads to {public(target)}{why}")
        return super().redirect_request(*arguments)

    def _why_not(self, target: str) -> str:
        refusal = _refusal(target)
        if refusal:
            return f": {refusal}"
        if _origin(self._address)[0] == "https" and _origin(target)[0] != "https":
            return f": {_HTTPS_ONLY}"
        if self._server and _origin(target) != _origin(self._server):
            return f", which {_elsewhere(self._server)}"
        if _is_loopback(target) and not _is_loopback(self._address):
            return ": no other server's business"
        return ""


class _Timed(io.RawIOBase):
    """What comes out of a socket until `deadline`. The timeout of a socket starts again with each byte."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, deadline: float) -> None:
        super().__init__()
        self._sock = sock
        self._raw = raw
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left(deadline: float) -> float:
    """Seconds. Raises: TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _reply(sock: socket.socket, *arguments: Any, deadline: float, **more: Any) -> HTTPResponse:
    """The response of `http.client`, head and body read in time."""
    reply = HTTPResponse(sock, *arguments, **more)
    raw: Any = reply.fp.detach()
    reply.fp = io.BufferedReader(_Timed(sock, raw, deadline))
    return reply


def _opener(address: str, server: str, deadline: float) -> OpenerDirector:
    def timed(connection_class: Callable[..., Any], host: str, **more: Any) -> Any:
        connection = connection_class(host, **{**more, "timeout": _left(deadline)})
        connection.response_class = partial(_reply, deadline=deadline)
        return connection

    class Plain(HTTPHandler):
        def do_open(self, http_class: Any, req: Request, **more: Any) -> HTTPResponse:
            return super().do_open(partial(timed, http_class), req, **more)

    class Secure(HTTPSHandler):
        def do_open(self, http_class: Any, req: Request, **more: Any) -> HTTPResponse:
            return super().do_open(partial(timed, http_class), req, **more)

    return build_opener(Plain, Secure, _SameRules(address, server))


def _get(address: str, server: str, deadline: float, max_bytes: int) -> tuple[str, bytes]:
    shown, quoted = public(address), quote(address, safe=_AS_THEY_ARE)
    began = time.monotonic()
    try:
        request = Request(quoted, headers={"User-Agent": "ft"})  # noqa: S310  # the scheme was checked
        with _opener(address, server, deadline).open(request, timeout=deadline - began) as reply:
            data: bytes = reply.read(max_bytes + 1)
            expected = reply.headers.get("Content-Length", "")
            location: str = reply.geturl()
    except HTTPError as error:
        error.close()
        if HTTPRedirectHandler.inf_msg in str(error.msg):
            raise UsageError(f"{shown} leads in a circle, or to too many addresses") from None
        if error.code // 100 == 3:  # A scheme that urllib refuses by itself.
            raise UsageError(f"{shown} leads to where no recipe may be fetched from") from None
        # Our own words for the code: a server may send anything.
        phrase = responses.get(error.code, "")
        raise NotFoundError(f"{shown}: the server says {error.code} {phrase}".rstrip()) from None
    except (HTTPException, OSError, ValueError) as error:
        raise _failed(shown, error, deadline - began) from None
    if expected.isdecimal() and len(data) < min(int(expected), max_bytes):
        message = f"the connection broke after {len(data)} of {expected} bytes"
        raise NotFoundError(f"{shown} cannot be fetched: {message}")
    return (address if location == quoted else location), data


def _failed(shown: str, error: Exception, seconds: float) -> FtError:
    reason: object = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return NotFoundError(f"{shown} cannot be fetched: not there after {seconds:.3g} seconds")
    if isinstance(reason, ValueError | InvalidURL) and not isinstance(reason, OSError):
        # What Python says of an address quotes it, with what may be secret in it.
        return NotFoundError(f"{shown} cannot be fetched: it is no address, or leads to none")
    return NotFoundError(
        f"{shown} cannot be fetched: {_one_line(str(reason)) or type(reason).__name__}"
    )


def _one_line(text: str) -> str:
    line = " ".join(text.split())[:200]
    return line if line.isprintable() else ascii(line)
