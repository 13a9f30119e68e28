"""Commands in running containers: how a client gets to them, and the service that runs them.

A client asks the control plane for an address and a token, and talks to a service of the worker from then on. Here that
is a gRPC service of its own as well. Of it there is what a command without a terminal needs; the rest is UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpclib.const
from containers import Containers
from google.protobuf import message_factory
from grpclib import GRPCError, Status
from grpclib.server import Server, Stream
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router_pb2
from state import Container, World, not_found

SERVICE = router_pb2.DESCRIPTOR.services_by_name["TaskCommandRouter"]
CHUNK = 1 << 16


@dataclass(eq=False)
class Execution:
    """A command, and all that it has printed: a client may read it again from any place."""

    process: asyncio.subprocess.Process
    printed: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    over: set[int] = field(default_factory=set)
    """Whose end was reached."""
    code: int | None = None
    """As `subprocess` has it: below 0 for a signal."""
    taken: int = 0
    """Bytes of standard input that have arrived."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def part(self, number: int, offset: int) -> bytes:
        """What was printed from there on, once there is any; empty behind the end."""
        printed = self.printed[number]
        async with self.changed:
            await self.changed.wait_for(lambda: len(printed) > offset or number in self.over)
        return bytes(printed[offset : offset + CHUNK])


class Execs:
    """Both sides: the control plane's, which is a handler as others are, and the worker's, once it listens."""

    def __init__(self, world: World, containers: Containers) -> None:
        self.world, self.containers = world, containers
        self.url = ""
        self.tokens: dict[str, Container] = {}
        self.executions: dict[tuple[str, str], Execution] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> Server:
        server = Server([self])
        await server.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
        return server

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        shapes = grpclib.const.Cardinality
        handlers: dict[str, tuple[Callable[..., Any], grpclib.const.Cardinality]] = {
            "TaskExecStart": (self._start, shapes.UNARY_UNARY),
            "TaskExecStdinWrite": (self._write, shapes.UNARY_UNARY),
            "TaskExecStdioRead": (self._read, shapes.UNARY_STREAM),
            "TaskExecWait": (self._wait, shapes.UNARY_UNARY),
        }
        return {
            f"/{SERVICE.full_name}/{name}": grpclib.const.Handler(
                handler,
                shape,
                message_factory.GetMessageClass(SERVICE.methods_by_name[name].input_type),
                message_factory.GetMessageClass(SERVICE.methods_by_name[name].output_type),
            )
            for name, (handler, shape) in handlers.items()
        }

    async def task_get_command_router_access(
        self, request: api_pb2.TaskGetCommandRouterAccessRequest
    ) -> api_pb2.TaskGetCommandRouterAccessResponse:
        """Of the control plane. Our reading: a container that has ended is not found."""
        container = self.world.containers[request.task_id]
        if self.containers.main_pid(container) is None:
            raise not_found(f"a running container {request.task_id}")
        token = secrets.token_urlsafe()
        self.tokens[token] = container
        return api_pb2.TaskGetCommandRouterAccessResponse(url=self.url, jwt=token)

    # The worker's service.

    async def _start(self, stream: Stream) -> None:
        request = await self._received(stream)
        key = (request.task_id, request.exec_id)
        if key not in self.executions:  # Else its reply was lost.
            process = await self.containers.enter(
                self.world.containers[request.task_id], list(request.command_args)
            )
            execution = self.executions[key] = Execution(process)
            task = asyncio.ensure_future(_watch(execution))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        await stream.send_message(router_pb2.TaskExecStartResponse())

    async def _write(self, stream: Stream) -> None:
        request = await self._received(stream)
        execution = self.executions[request.task_id, request.exec_id]
        new = request.data[max(0, execution.taken - request.offset) :]
        execution.taken += len(new)
        stdin = execution.process.stdin
        try:
            stdin.write(new)
            await stdin.drain()
            if request.eof:
                stdin.close()
        except ConnectionError as error:
            raise GRPCError(Status.FAILED_PRECONDITION, "nobody reads it any more") from error
        await stream.send_message(router_pb2.TaskExecStdinWriteResponse())

    async def _read(self, stream: Stream) -> None:
        request = await self._received(stream)
        execution = self.executions[request.task_id, request.exec_id]
        is_errors = request.file_descriptor == router_pb2.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        number, offset = 2 if is_errors else 1, request.offset
        while part := await execution.part(number, offset):
            offset += len(part)
            await stream.send_message(router_pb2.TaskExecStdioReadResponse(data=part))

    async def _wait(self, stream: Stream) -> None:
        request = await self._received(stream)
        execution = self.executions[request.task_id, request.exec_id]
        async with execution.changed:
            await execution.changed.wait_for(lambda: execution.code is not None)
        code = execution.code
        exit_status = {"signal": -code} if code < 0 else {"code": code}
        await stream.send_message(router_pb2.TaskExecWaitResponse(**exit_status))

    async def _received(self, stream: Stream) -> Any:
        """The request, of somebody who may ask about its container."""
        request = await stream.recv_message()
        token = str((stream.metadata or {}).get("authorization", "")).removeprefix("Bearer ")
        container = self.tokens.get(token)
        if container is None or container.id != request.task_id:
            raise GRPCError(Status.UNAUTHENTICATED, "another token is needed")
        return request


async def _watch(execution: Execution) -> None:
    process = execution.process
    pumps = (_pump(execution, 1, process.stdout), _pump(execution, 2, process.stderr))
    *_, code = await asyncio.gather(*pumps, process.wait())
    async with execution.changed:
        execution.code = code
        execution.changed.notify_all()


async def _pump(execution: Execution, number: int, stream: asyncio.StreamReader) -> None:
    while part := await stream.read(CHUNK):
        async with execution.changed:
            execution.printed[number] += part
            execution.changed.notify_all()
    async with execution.changed:
        execution.over.add(number)
        execution.changed.notify_all()
