"""A real S3 server (moto) on loopback, which fails on order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Fault = Callable[[dict[str, Any]], str | None]
"""What a request is to get: `throttle`, `reset`, `expired`, or None."""
ANSWERS = {
    "throttle": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "expired": ("400 Bad Request", "ExpiredToken", "The provided token has expired."),
}


class Quiet(WSGIRequestHandler):
    """`ObjectStore.log` has what came."""

    def log_request(self, *_: Any) -> None:
        """Nothing."""


@dataclass
class ObjectStore:
    """`url` is what AWS_ENDPOINT_URL has to be. `fault` is asked about each request; `log` has what came."""

    fault: Fault | None = None
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "a-key",
            "AWS_SECRET_ACCESS_KEY": "planted-s3-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.log.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        what = self.fault(environ) if self.fault is not None else None
        if what is None:
            return self._app(environ, start)
        if what == "reset":
            environ["werkzeug.socket"].close()
            return []
        # A client that is still sending would see a reset in place of the answer.
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code, words = ANSWERS[what]
        body = f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


def times(number: int, what: str, *, method: str = "PUT") -> Fault:
    """The first requests of a method."""
    left = [number]

    def fault(environ: dict[str, Any]) -> str | None:
        if environ["REQUEST_METHOD"] != method or not left[0]:
            return None
        left[0] -= 1
        return what

    return fault
