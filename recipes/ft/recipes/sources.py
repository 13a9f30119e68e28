"""Where the text of a recipe comes from: a file, `-` for standard input, or an https address."""

from __future__ import annotations

import errno
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

from ft.recipes.errors import NotFoundError, UsageError
from ft.recipes.paths import expand
from ft.recipes.reader import broken

MAX_BYTES: Final = 1 << 20
FETCH_TIMEOUT_S: Final = 20.0
STDIN: Final = "-"

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_AS_THEY_ARE: Final = ":/?#[]@!$&'()*+,;=%"
"""What an address may hold; everything else, `größe.yml`, is percent-encoded."""
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_PIN: Final = re.compile(r"sha256=([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Source:
    """The text of one file and where it was found."""

    text: str
    name: str
    """How the user named it; printed in messages."""
    location: str
    """Absolute path or address: the same file has the same one, however it was named."""
    folder: Path
    """Where its relative paths are looked up; the current folder for what came over the network."""


def is_address(name: str) -> bool:
    """Whether `name` is something to fetch, and no path."""
    return _ADDRESS.match(name) is not None


def open_source(name: str, *, beside: Source | None = None) -> Source:
    """Read what `name` stands for; `beside` is the file that named it, for relative names.

    Raises: NotFoundError if there is no such file, UsageError if the name cannot be one,
    RecipeError if it is not UTF-8 text or too long.
    """
    # Half of a character, which a file name may have, would break whoever prints it.
    shown = name.encode("utf-8", "backslashreplace").decode()
    if not name:
        raise UsageError(
            "expected a recipe, got an empty name",
            hint="ft recipes ls  lists recipes to start from",
        )
    if beside is not None and not is_address(name):
        if is_address(beside.location):
            name = urljoin(beside.location, name)
            shown = name
        elif name != STDIN:
            path = expand(name)
            name = str(path if path.is_absolute() else beside.folder / path)
    if name == STDIN and beside is None:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        return Source(_decoded(data, "<stdin>"), "<stdin>", STDIN, Path.cwd())
    if is_address(name):
        address, data = _fetch(name)
        return Source(_decoded(data, public(address)), public(address), address, Path.cwd())
    file = expand(name)
    data = _read_file(file, shown)
    return Source(_decoded(data, shown), shown, str(file.resolve()), file.resolve().parent)


def _read_file(file: Path, shown: str) -> bytes:
    if not file.is_file():
        hint = "ft recipes ls  lists recipes to start from"
        raise NotFoundError(f"{shown} {_what_it_is(file)}", hint=hint)
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"{shown}: {error.strerror}") from error


def _what_it_is(file: Path) -> str:
    """What stands where a file was expected."""
    if file.is_symlink() and not file.exists():
        try:
            file.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                return "is a link that leads back to itself"
        return f"is a link to {file.readlink()}, which does not exist"
    if not file.exists():
        return "does not exist"
    return "is a folder" if file.is_dir() else "is no regular file"


def _fetch(name: str) -> tuple[str, bytes]:
    """Address without its fragment, and what is there. `#sha256=HEX` says what must be there."""
    # Slow to import, and few recipes are fetched.
    from hashlib import sha256

    address, fragment = urldefrag(name)
    shown = public(address)
    if not _may_be_fetched(address):
        raise UsageError(f"{shown}: a recipe is fetched over https only", hint="https://…")
    if "@" in urlsplit(address).netloc:
        hint = "fetch it with another program: curl -u USER ADDRESS | ft check -"
        raise UsageError(f"{shown}: ft sends no user and password", hint=hint)
    pin = _PIN.fullmatch(fragment.lower())
    if fragment and pin is None:
        raise UsageError(f"{shown}: expected #sha256=<64 hex digits> after the address, or nothing")
    data = _get(address)
    found = sha256(data).hexdigest()
    if pin is not None and found != pin[1]:
        raise UsageError(f"{shown} has changed: its sha256 is {found}, expected {pin[1]}")
    if data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        hint = "on GitHub that is the link behind the button Raw"
        raise UsageError(f"{shown} is a web page, not a recipe", hint=hint)
    return address, data


def _may_be_fetched(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:  # Not even an address: `https://[::1/r.yml`.
        return False
    is_loopback = parts.scheme == "http" and parts.hostname in _LOOPBACK
    return bool(parts.hostname) and (parts.scheme == "https" or is_loopback)


def public(address: str) -> str:
    """`address` without user, password and query, which may hold a token: for messages."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ascii(re.sub(r"//[^/?#]*@", "//", re.split(r"[?#]", address)[0]))
    host = parts.netloc.rpartition("@")[2]
    shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
    return shown if shown.isprintable() else ascii(shown)


def _get(address: str) -> bytes:
    from http.client import HTTPException, responses
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class SameRules(HTTPRedirectHandler):
        """Follows only to where a recipe may be fetched from, and never from https to http."""

        def redirect_request(self, *arguments: Any) -> Request | None:
            target = str(arguments[-1])
            falls = address.startswith("https:") and not target.startswith("https:")
            if falls or not _may_be_fetched(target):
                message = f"leads to {public(target)}: a recipe is fetched over https only"
                raise UsageError(f"{public(address)} {message}")
            return super().redirect_request(*arguments)

    shown, quoted = public(address), quote(address, safe=_AS_THEY_ARE)
    try:
        request = Request(quoted, headers={"User-Agent": "ft"})  # noqa: S310  # the scheme was checked
        with build_opener(SameRules).open(request, timeout=FETCH_TIMEOUT_S) as reply:
            data: bytes = reply.read(MAX_BYTES + 1)
            expected = reply.headers.get("Content-Length", "")
    except HTTPError as error:
        if HTTPRedirectHandler.inf_msg in str(error.msg):
            raise UsageError(f"{shown} leads in a circle, or to too many addresses") from None
        if error.code // 100 == 3:  # A scheme that urllib refuses by itself.
            raise UsageError(f"{shown} leads to where no recipe may be fetched from") from None
        # Our own words for the code: a server may send anything.
        phrase = responses.get(error.code, "")
        raise NotFoundError(f"{shown}: the server says {error.code} {phrase}".rstrip()) from None
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = _one_line(str(getattr(error, "reason", error)) or type(error).__name__)
        raise NotFoundError(f"{shown} cannot be fetched: {reason}") from None
    if expected.isdecimal() and len(data) < min(int(expected), MAX_BYTES):
        message = f"the connection broke after {len(data)} of {expected} bytes"
        raise NotFoundError(f"{shown} cannot be fetched: {message}")
    return data


def _one_line(text: str) -> str:
    line = " ".join(text.split())[:200]
    return line if line.isprintable() else ascii(line)


def _encoding(data: bytes) -> str:
    """What text that is no UTF-8 may be; empty for what is no text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    return "" if _CONTROL.search(data) else "Latin-1"


def _decoded(data: bytes, shown: str) -> str:
    """UTF-8, with or without a byte order mark. Raises: RecipeError."""
    if len(data) > MAX_BYTES:
        raise broken(shown, 1, f"too long for a recipe: more than {MAX_BYTES} bytes")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        kind = _encoding(data)
        hint = f": it looks like {kind}. Save it as UTF-8." if kind else ""
        line = data.count(b"\n", 0, error.start) + 1
        raise broken(shown, line, f"not UTF-8 text (byte {error.start}){hint}") from None
