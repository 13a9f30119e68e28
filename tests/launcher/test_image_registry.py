"""A digest is asked of a registry as the distribution API has it: a real server on loopback, with a token to be had."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from ft.launcher.image_registry import (
    MANIFESTS,
    Reference,
    digest_of,
    is_loopback,
    is_tagged,
    parse,
)
from ft.recipes.errors import FtError, NotFoundError, UnreachableError, UsageError

INDEX = b'{"schemaVersion": 2, "manifests": []}'
DIGEST = f"sha256:{hashlib.sha256(INDEX).hexdigest()}"
NO_LOGIN = "does not answer: it wants a login, and only public images can be asked for"


class Registry(ThreadingHTTPServer):
    """Tags: `3.11` is there, `wrong` has another digest in its header, `closed` wants a login, `broken` fails."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        parts = urlsplit(self.path)
        tag = parts.path.rpartition("/")[2]
        if parts.path == "/token":
            assert parse_qs(parts.query) == {
                "scope": ["repository:team/python:pull"],
                "service": ["here"],
            }
            self.answer(200, b'{"token": "anybodys"}')
        elif tag == "closed":
            self.answer(401, b"", {"WWW-Authenticate": 'Basic realm="people"'})
        elif tag == "elsewhere":
            self.answer(401, b"", {"WWW-Authenticate": 'Bearer realm="http://192.0.2.1/token"'})
        elif self.headers.get("Authorization") != "Bearer anybodys":
            realm = f'Bearer realm="http://{self.server.host}/token",service="here"'
            self.answer(401, b"{}", {"WWW-Authenticate": realm})
        elif tag == "broken":
            self.answer(500, b"")
        elif tag in {"3.11", "wrong", "silent"}:
            said = {"3.11": DIGEST, "wrong": f"sha256:{'0' * 64}"}
            self.answer(200, INDEX, {"Docker-Content-Digest": said[tag]} if tag in said else {})
        else:
            self.answer(404, json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN"}]}).encode())

    def answer(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_token_is_asked_for_and_the_digest_is_of_what_arrived(registry: Registry) -> None:
    assert digest_of(parse(f"{registry.host}/team/python:3.11")) == DIGEST
    paths = [path for path, _ in registry.asked]
    manifest = "/v2/team/python/manifests/3.11"
    assert paths == [
        manifest,
        "/token?scope=repository%3Ateam%2Fpython%3Apull&service=here",
        manifest,
    ]
    first, token, last = (headers for _, headers in registry.asked)
    assert first["Accept"] == last["Accept"] == ", ".join(MANIFESTS)
    assert "Authorization" not in first | token
    assert digest_of(parse(f"{registry.host}/team/python:silent")) == DIGEST


@pytest.mark.parametrize(
    ("tag", "kind", "message"),
    [
        ("3.99", NotFoundError, "{host}/team/python:3.99: the registry has no such tag"),
        ("broken", UnreachableError, "{host}/team/python:broken: the registry says 500 Internal Server Error"),
        ("wrong", UnreachableError, "{host} says sha256:" + "0" * 64 + f", and what it sent is {DIGEST}"),
        ("closed", UnreachableError, f"{{host}} {NO_LOGIN}"),
        ("elsewhere", UnreachableError, f"{{host}} {NO_LOGIN}"),
    ],
)  # fmt: skip
def test_no_digest_but_one_that_was_fetched(
    registry: Registry, tag: str, kind: type[FtError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        digest_of(parse(f"{registry.host}/team/python:{tag}"))
    assert caught.value.message == message.format(host=registry.host)


def test_where_nothing_answers_it_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound, and nobody listens.
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=rf"{host} does not answer: .*refused"):
            digest_of(parse(f"{host}/team/python:3.11"))


@pytest.mark.parametrize(
    ("text", "expected", "address"),
    [
        ("python", ("docker.io", "python", "latest", ""), "https://registry-1.docker.io/v2/library/python"),
        ("python:3.11-slim", ("docker.io", "python", "3.11-slim", ""), "https://registry-1.docker.io/v2/library/python"),
        ("a/b:1", ("docker.io", "a/b", "1", ""), "https://registry-1.docker.io/v2/a/b"),
        ("nvcr.io/nvidia/cuda:12.8", ("nvcr.io", "nvidia/cuda", "12.8", ""), "https://nvcr.io/v2/nvidia/cuda"),
        ("localhost:5000/x", ("localhost:5000", "x", "latest", ""), "http://localhost:5000/v2/x"),
        ("host:5000/x:1", ("host:5000", "x", "1", ""), "https://host:5000/v2/x"),
        (f"a:1@{DIGEST}", ("docker.io", "a", "1", DIGEST), "https://registry-1.docker.io/v2/library/a"),
    ],
)  # fmt: skip
def test_names_of_images(text: str, expected: tuple[str, ...], address: str) -> None:
    found = parse(text)
    assert found == Reference(*expected)
    assert f"{found.api}/v2/{found.repository}" == address
    assert is_tagged(text) is (":1" in text or ":3" in text or ":12" in text or "@" in text)


@pytest.mark.parametrize("text", ["", "A B", "Upper", "a@sha256:1", "http://x/y", "-a", "a:b:c"])
def test_what_is_no_name_of_an_image(text: str) -> None:
    with pytest.raises(UsageError, match="is no name of an image"):
        parse(text)


def test_only_this_machine_is_asked_without_tls() -> None:
    assert [is_loopback(h) for h in ("localhost", "localhost:1", "127.0.0.9:1")] == [True] * 3
    assert [is_loopback(h) for h in ("docker.io", "10.0.0.1:5000", "localhost.example")] == [
        False
    ] * 3
