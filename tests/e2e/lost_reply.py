"""A way to a server on loopback on which one reply is lost: the request arrives, what is answered never comes back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

BLOCK = 1 << 16


@dataclass
class Way:
    """Hands connections on, byte for byte, but for the first reply to a request that begins with `asked`."""

    to: tuple[str, int]
    asked: bytes
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    lost: threading.Event = field(default_factory=threading.Event)
    request: bytearray = field(default_factory=bytearray)
    """That whose reply was lost."""
    _begun: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                threading.Thread(target=self._hand_on, args=(near,), daemon=True).start()

    def _hand_on(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near, socket.create_connection(self.to) as far:
            loses = threading.Event()
            back = threading.Thread(target=self._back, args=(far, near, loses), daemon=True)
            back.start()
            while block := near.recv(BLOCK):
                # A connection is used again, and each request begins with a block of its own.
                if block.startswith(self.asked) and self._begun.acquire(blocking=False):
                    loses.set()
                if loses.is_set():
                    self.request += block
                far.sendall(block)

    def _back(self, far: socket.socket, near: socket.socket, loses: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while block := far.recv(BLOCK):
                if loses.is_set():
                    self.lost.set()
                    break
                near.sendall(block)
        for end in (near, far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def losing(url: str, asked: str) -> Iterator[Way]:
    """A way to `url` that loses the first reply to `asked`, such as `POST /run`."""
    where = urlsplit(url)
    way = Way((where.hostname or "", where.port or 80), f"{asked} ".encode())
    thread = threading.Thread(target=way.serve, daemon=True)
    thread.start()
    try:
        yield way
    finally:
        way.listener.close()
