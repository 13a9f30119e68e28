"""The gRPC edge: finds the handler of an RPC, records the request, answers a retried one once, applies faults."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpclib.const
from faults import Faults
from google.protobuf import message_factory
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.server import Server, Stream
from modal_proto import api_pb2
from state import CALLER, Container, World

SERVICE = api_pb2.DESCRIPTOR.services_by_name["ModalClient"]
# Polls: they change nothing until they answer, and must end with the connection of who asked.
POLLS = {"FunctionGetInputs", "FunctionGetOutputs", "ContainerHeartbeat", "QueueGet"}
SECRET_FIELDS = {"SecretGetOrCreate": ("envDict",), "SecretUpdate": ("updates",)}
MANY_BYTES = 4096
SHORTEST_SECRET = 8


class Recorder:
    """Writes `requests.jsonl`: one line per RPC that arrives, retries included, without a secret value."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.path: Path = world.path("requests.jsonl")
        self.lines: list[dict[str, Any]] = []

    def record(
        self, name: str, key: str, attempt: str, request: Message, caller: Container | None
    ) -> None:
        line: dict[str, Any] = {
            "rpc": name,
            "time": time.time(),
            "key": key,
            "attempt": int(attempt or 0),
            "container": caller.id if caller else None,
            "request": self._public(name, request),
        }
        # A secret in a Dockerfile or an argument is what a test wants to find, and what no file may hold.
        if name not in SECRET_FIELDS and self._leaks(request):
            line |= {"leak": True, "request": {}}
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _public(self, name: str, request: Message) -> dict[str, Any]:
        shown = MessageToDict(_without_blobs(request))
        for field in SECRET_FIELDS.get(name, ()):
            if isinstance(shown.get(field), dict):
                shown[field] = dict.fromkeys(shown[field], "***")
            elif field in shown:
                shown[field] = [item | {"value": "***"} for item in shown[field]]
        return shown

    def _leaks(self, request: Message) -> bool:
        raw = request.SerializeToString()
        values = (
            value for secret in self.world.secrets.values() for value in secret.values.values()
        )
        return any(len(value) >= SHORTEST_SECRET and value.encode() in raw for value in values)


def _without_blobs(request: Message) -> Message:
    """The request, with `data` of many bytes (an uploaded file) replaced by its length."""
    if len(getattr(request, "data", b"")) <= MANY_BYTES:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.data = f"<{len(request.data)} bytes>".encode()
    return copy


class Edge:
    """One gRPC service. The client has one; each container has its own, which is how we know who asks.

    `areas` are objects whose coroutine methods are handlers: `AppGetOrCreate` is `app_get_or_create(request)`, an
    async generator where the RPC streams; `state.CALLER` is who asks.
    RPCs without a handler answer UNIMPLEMENTED with their name.
    """

    def __init__(self, recorder: Recorder, faults: Faults, areas: list[object]) -> None:
        self.recorder, self.faults = recorder, faults
        self.handlers = {m.name: _handler(m.name, areas) for m in SERVICE.methods}
        self.replies: dict[str, asyncio.Task[Message]] = {}

    async def listen(self, caller: Container | None, port: int = 0) -> tuple[Server, int]:
        """Serve on loopback; returns the server and its port."""
        server = Server([_Service(self, caller)])
        await server.start("127.0.0.1", port)
        return server, server._server.sockets[0].getsockname()[1]

    async def serve(self, name: str, caller: Container | None, stream: Stream) -> None:
        request = await stream.recv_message()
        assert request is not None
        header = stream.metadata or {}
        key = header.get("x-idempotency-key", "")
        self.recorder.record(name, key, header.get("x-retry-attempt", ""), request, caller)
        CALLER.set(caller)
        handler = self.handlers[name]
        if handler is None:
            raise GRPCError(
                Status.UNIMPLEMENTED, f"the loopback control plane does not implement {name}"
            )
        try:
            if SERVICE.methods_by_name[name].server_streaming:
                async for reply in handler(request):
                    await stream.send_message(reply)
                return
            reply = await self._once(name, key, handler(request))
        except KeyError as error:  # Handlers look ids up in plain dicts.
            raise GRPCError(Status.NOT_FOUND, f"{name}: {error} not found") from error
        await self.faults.before_reply(name)
        await stream.send_message(reply)

    async def _once(self, name: str, key: str, work: Any) -> Message:
        """The first reply for this key. A call whose client is gone is worked on all the same, as in a real service."""
        if name in POLLS or not key:
            return await work
        if key in self.replies:
            work.close()
        else:
            self.replies[key] = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(self.replies[key])
        except (GRPCError, KeyError):
            self.replies.pop(key, None)  # What failed had no effect: a retry may try again.
            raise


class _Service:
    def __init__(self, edge: Edge, caller: Container | None) -> None:
        self.edge, self.caller = edge, caller

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        mapping = {}
        for method in SERVICE.methods:
            shape = grpclib.const.Cardinality.UNARY_UNARY
            if method.server_streaming:
                shape = grpclib.const.Cardinality.UNARY_STREAM
            mapping[f"/{SERVICE.full_name}/{method.name}"] = grpclib.const.Handler(
                partial(self.edge.serve, method.name, self.caller),
                shape,
                message_factory.GetMessageClass(method.input_type),
                message_factory.GetMessageClass(method.output_type),
            )
        return mapping


def _handler(rpc: str, areas: list[object]) -> Callable[..., Any] | None:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()
    found = [getattr(area, name) for area in areas if hasattr(area, name)]
    assert len(found) <= 1, f"{rpc} has two handlers"
    return found[0] if found else None
