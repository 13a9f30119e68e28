"""Files that a recipe is made of: how many, from where, and for how long. Real files, real loopback servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ft.recipes import fetch
from ft.recipes.errors import FtError, NotFoundError, RecipeError, UsageError
from ft.recipes.fetch import public, without_secrets
from ft.recipes.load import load


def said(act: Callable[[], object]) -> list[str]:
    """The problems of a recipe, or the message and the hint of another error."""
    with pytest.raises(FtError) as caught:
        act()
    error = caught.value
    if isinstance(error, RecipeError):
        return [str(problem) for problem in error.problems]
    return [error.message, *([error.hint] if error.hint else [])]


# ----------------------------------------------------------------------------------- how many files


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yml").write_text(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_that_many_extend_is_read_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 3^14 paths lead to the last of these files.
    for i in range(14):
        write(
            here, **{f"x{i}": f"extends: [x{i + 1}.yml, ./x{i + 1}.yml, x{i + 1}.yml]\nk{i}: {i}\n"}
        )
    write(here, x14="k14: 14\nk14: 0\n")
    opened: list[str] = []
    read = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *a: (opened.append(path.name), read(path, *a))[1]
    )
    recipe = load("x0.yml")
    assert recipe.values == {f"k{i}": i for i in range(15)}
    assert [str(recipe.mark((f"k{i}",))) for i in (0, 13, 14)] == [
        "x0.yml:2",
        "x13.yml:2",
        "x14.yml:1",
    ]
    assert [str(problem) for problem in recipe.problems] == [
        "x14.yml:2: k14: the key stands twice; first in line 1. Keep one."
    ]
    assert opened == [f"x{i}.yml" for i in range(15)]


def test_a_recipe_is_made_of_so_many_files_and_no_more(here: Path) -> None:
    names = [f"b{i}.yml" for i in range(63)]
    for i, name in enumerate(names):
        (here / name).write_text(f"k{i}: {i}\n")
    write(here, r=f"extends: [{', '.join([*names, *names])}]\n")
    assert load("r.yml").values == {f"k{i}": i for i in range(63)}
    write(here, r=f"seed: 1\nextends: [{', '.join(names)}, more.yml]\n", more="a: 1\n")
    assert said(lambda: load("r.yml")) == [
        "r.yml:2: extends: more.yml is one file too many: a recipe is made of at most 64. "
        "Put what they hold into fewer."
    ]


def test_a_mapping_is_merged_and_every_line_is_that_of_its_value(here: Path) -> None:
    write(
        here,
        base="cloud:\n  gpu: cpu\n  timeout: 1h\ndatasets:\n  - {path: a}\n  - {path: b}\nseed: 1\n",
        over="extends: base.yml\ndatasets:\n  - path: c\n\ncloud:\n  timeout: 2h\n",
    )
    recipe = load("over.yml")
    assert recipe.values == {
        "cloud": {"gpu": "cpu", "timeout": "2h"},
        "datasets": [{"path": "c"}],
        "seed": 1,
    }
    assert {".".join(map(str, key)): str(mark) for key, mark in recipe.marks.items()} == {
        "cloud": "over.yml:5",
        "cloud.gpu": "base.yml:2",
        "cloud.timeout": "over.yml:6",
        "datasets": "over.yml:2",
        "datasets.0": "over.yml:3",
        "datasets.0.path": "over.yml:3",
        "seed": "base.yml:7",
    }


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000])
def test_a_name_that_no_file_can_have_is_explained(here: Path, name: str) -> None:
    write(here, r=f"extends: {name}\n")
    assert said(lambda: load("r.yml")) == [f"r.yml:1: extends: {name}: File name too long"]


# ------------------------------------------------------------------------------------- from where


@dataclass
class Web:
    """A server on this machine: `pages` by path; a text that begins with `->` leads there."""

    port: int
    pages: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __call__(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def serving() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append(self.path)
            page = web.pages.get(self.path.partition("?")[0])
            if page is None:
                self.send_error(404)
            elif page.startswith(b"->"):
                self.send_response(302)
                self.send_header("Location", page[2:].decode())
                self.end_headers()
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        web = Web(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield web
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as found:
        yield found


@pytest.fixture
def other() -> Iterator[Web]:
    """Another server: the same machine, another port."""
    with serving() as found:
        yield found


def test_a_recipe_from_the_network_extends_only_what_lies_on_its_server(
    web: Web, other: Web
) -> None:
    other.pages["/b.yml"] = web.pages["/b.yml"] = b"seed: 1\n"
    own = f"http://127.0.0.1:{web.port}"
    for name, address in (
        (other("/b.yml"), other("/b.yml")),
        (f"//127.0.0.1:{other.port}/b.yml", other("/b.yml")),
        (web("/b.yml", "localhost"), web("/b.yml", "localhost")),
        (f"//localhost:{web.port}/b.yml", web("/b.yml", "localhost")),
        (f"https://127.0.0.1:{web.port}/b.yml", f"https://127.0.0.1:{web.port}/b.yml"),
        ("https://example.com/b.yml", "https://example.com/b.yml"),
        ("///example.com/../b.yml", ""),
    ):
        web.pages["/a.yml"] = f"extends: {name}\n".encode()
        if not address:
            assert load(web("/a.yml")).values == {"seed": 1}
            continue
        assert said(lambda: load(web("/a.yml"))) == [
            f"{web('/a.yml')}:1: extends: {address} is on another server: a recipe from {own} extends "
            "only what lies there. Save it as a file to extend both"
        ]
    assert other.asked == []


def test_neither_does_a_redirect_lead_it_to_another_server(web: Web, other: Web) -> None:
    other.pages["/b.yml"] = b"seed: 1\n"
    web.pages["/a.yml"] = b"extends: moved.yml\n"
    web.pages["/moved.yml"] = f"->{other('/b.yml')}".encode()
    elsewhere = (
        f"{web('/moved.yml')} leads to {other('/b.yml')}, which is on another server: "
        f"a recipe from {web('')} extends only what lies there. Save it as a file to extend both"
    )
    assert said(lambda: load(web("/a.yml"))) == [f"{web('/a.yml')}:1: extends: {elsewhere}"]
    assert other.asked == []
    web.pages["/moved.yml"] = b"->/c.yml"
    web.pages["/c.yml"] = b"seed: 2\n"
    assert load(web("/a.yml")).values == {"seed": 2}


def test_what_the_user_names_may_lie_anywhere_but_a_recipe_may_not_use_that(
    here: Path, web: Web, other: Web
) -> None:
    other.pages["/b.yml"] = b"seed: 1\n"
    web.pages["/moved.yml"] = f"->{other('/b.yml')}".encode()
    web.pages["/a.yml"] = b"extends: moved.yml\n"
    write(here, r=f"extends: [{web('/moved.yml')}, {other('/b.yml')}]\nlora_r: 8\n")
    assert load("r.yml").values == {"seed": 1, "lora_r": 8}
    assert web.asked == ["/moved.yml"]
    write(here, r=f"extends: [{web('/moved.yml')}, {web('/a.yml')}]\n")
    (problem,) = said(lambda: load("r.yml"))
    assert problem.startswith(
        f"{web('/a.yml')}:1: extends: {web('/moved.yml')} leads to {other('/b.yml')}, "
    )


def test_relative_names_are_looked_up_where_a_redirect_led(web: Web, other: Web) -> None:
    web.pages["/latest.yml"] = f"->{other('/v2/r.yml')}".encode()
    other.pages["/v2/r.yml"] = b"extends: base.yml\n"
    other.pages["/v2/base.yml"] = b"seed: 2\n"
    assert load(web("/latest.yml")).values == {"seed": 2}
    assert (web.asked, other.asked) == (["/latest.yml"], ["/v2/r.yml", "/v2/base.yml"])


def test_each_address_is_asked_once_and_not_more_of_them_than_a_recipe_may_have(web: Web) -> None:
    for i in range(10):
        web.pages[f"/x{i}.yml"] = f"extends: [x{i + 1}.yml, x{i + 1}.yml]\n".encode()
    web.pages["/x10.yml"] = b"seed: 1\n"
    assert load(web("/x0.yml")).values == {"seed": 1}
    assert web.asked == [f"/x{i}.yml" for i in range(11)]
    web.asked.clear()
    names = ", ".join(f"'b.yml?{i}'" for i in range(1000))
    web.pages["/many.yml"] = f"extends: [{names}]\n".encode()
    web.pages["/b.yml"] = b"seed: 1\n"
    assert said(lambda: load(web("/many.yml"))) == [
        f"{web('/many.yml')}:1: extends: {web('/b.yml')} is one file too many: a recipe is made of "
        "at most 64. Put what they hold into fewer."
    ]
    assert len(web.asked) == 64


def test_a_pin_counts_for_a_file_that_is_there_already(web: Web) -> None:
    web.pages["/b.yml"] = b"seed: 1\n"
    web.pages["/a.yml"] = f"extends: [b.yml, 'b.yml#sha256={'0' * 64}']\n".encode()
    (problem,) = said(lambda: load(web("/a.yml")))
    assert problem.startswith(
        f"{web('/a.yml')}:1: extends: {web('/b.yml')} has changed: its sha256 is "
    )
    assert web.asked == ["/a.yml", "/b.yml"]


HTTPS = "https://example.com/r.yml"


@pytest.mark.parametrize(
    ("address", "server", "target", "why"),
    [
        (HTTPS, "", "http://localhost/x", ": a recipe is fetched over https only"),
        (HTTPS.replace("https", "HTTPS"), "", "http://127.0.0.1/x", ": a recipe is fetched over https only"),
        (HTTPS, "", "http://example.com/x", ": a recipe is fetched over https only"),
        (HTTPS, "", "file:///etc/hostname", ": a recipe is fetched over https only"),
        (HTTPS, "", "https://localhost/x", ": no other server's business"),
        (HTTPS, "", "https://127.9.9.9/x", ": no other server's business"),
        (HTTPS, "", "https://[::1]:8443/x", ": no other server's business"),
        (HTTPS, "", "https://a.localhost/x", ": no other server's business"),
        (HTTPS, "", "https://u:p@example.com/x", ": an address with a user or a password is not fetched"),
        (HTTPS, HTTPS, "https://EXAMPLE.com:443/x", ""),
        (HTTPS, HTTPS, "https://example.com:444/x",
         ", which is on another server: a recipe from https://example.com extends only what lies there. "
         "Save it as a file to extend both"),
        (HTTPS, "", "https://raw.example.net/x", ""),
        ("http://localhost:1/r.yml", "", "http://127.0.0.1:2/x", ""),
    ],
)  # fmt: skip
def test_where_a_redirect_may_lead(address: str, server: str, target: str, why: str) -> None:
    # By the rule: what leaves this machine cannot be served by a test.
    rules: Any = fetch._SameRules(address, server)
    assert rules._why_not(target) == why


@pytest.mark.parametrize(
    ("name", "said_of_it"),
    [
        ("//[", "'//[' is no address"),
        ("http://[::1/r.yml", "'http://[::1/r.yml' is no address"),
        ("https://127.0.0.1:port/r.yml", "(no address): a recipe is fetched over https only"),
        ("https:///r.yml", "https:///r.yml: a recipe is fetched over https only"),
    ],
)
def test_what_is_no_address_is_explained(web: Web, name: str, said_of_it: str) -> None:
    web.pages["/a.yml"] = f"extends: '{name}'\n".encode()
    assert said(lambda: load(web("/a.yml"))) == [f"{web('/a.yml')}:1: extends: {said_of_it}"]


# --------------------------------------------------------------------------------------- for how long


@contextmanager
def dripping(before: bytes) -> Iterator[str]:
    """A server that says `before` at once and then something every few milliseconds, without an end."""
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                try:
                    client.sendall(before)
                    while not done.wait(0.02):
                        client.sendall(b"x")
                except OSError:
                    pass  # The client has had enough.

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/r.yml"
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"",
    ],
    ids=["body", "body without a length", "chunks", "head", "status"],
)
def test_a_server_that_never_comes_to_an_end_is_left(
    monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setattr(fetch, "FETCH_TIMEOUT_S", 0.5)
    with dripping(before) as address:
        assert said(lambda: load(address)) == [
            f"{address} cannot be fetched: not there after 0.5 seconds"
        ]


@pytest.mark.timeout(60)
def test_all_files_together_have_so_much_time(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    web.pages["/a.yml"] = b"extends: b.yml\n"
    web.pages["/b.yml"] = b"seed: 1\n"
    monkeypatch.setattr(fetch, "TOTAL_TIMEOUT_S", 0.0)
    (message,) = said(lambda: load(web("/a.yml")))
    assert message.startswith(f"{web('/a.yml')} cannot be fetched: not there after ")
    assert web.asked == []


# ----------------------------------------------------------------------------------------- secrets


def test_no_message_shows_a_password_or_a_token(here: Path, web: Web) -> None:
    login = f"http://user:secret@127.0.0.1:{web.port}/r.yml?token=secret"
    shown = web("/r.yml")
    no_login = "an address with a user or a password is not fetched"
    with pytest.raises(UsageError) as refused:
        load(login)
    assert (refused.value.message, refused.value.hint) == (
        f"{shown}: {no_login}",
        "curl -u USER -o recipe.yml ADDRESS",
    )
    write(here, r=f"extends: {login}\n")
    assert said(lambda: load("r.yml")) == [f"r.yml:1: extends: {shown}: {no_login}"]
    web.pages["/moved.yml"] = f"->{login}".encode()
    assert said(lambda: load(web("/moved.yml"))) == [
        f"{web('/moved.yml')} leads to {shown}: {no_login}"
    ]
    for port in ("secret", "99999"):
        web.pages["/moved.yml"] = f"->http://127.0.0.1:{port}/r.yml".encode()
        assert said(lambda: load(web("/moved.yml"))) == [
            f"{web('/moved.yml')} leads to (no address): a recipe is fetched over https only"
        ]
    with pytest.raises(NotFoundError) as gone:
        load(web("/gone.yml?token=secret"))
    assert gone.value.message == f"{web('/gone.yml')}: the server says 404 Not Found"
    web.pages["/bad.yml"] = b"a: [\n"
    assert "secret" not in "".join(said(lambda: load(web("/bad.yml?token=secret"))))
    assert "https://[::1/secret" not in public("https://[::1/secret")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://h/r.yml#sha256=ab", "https://h/r.yml#sha256=ab"),
        ("https://u:secret@h:1/r.yml?t=secret#sha256=ab", "https://h:1/r.yml?…#sha256=ab"),
        ("https://h/r.yml?t=secret", "https://h/r.yml?…"),
        ("https://u:secret@[h/r.yml", "(no address)"),
    ],
)
def test_an_address_for_messages(address: str, expected: str) -> None:
    assert without_secrets(address) == expected
