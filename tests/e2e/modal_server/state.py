"""What the control plane knows: plain records in memory. Bytes of files lie in folders under `World.folder`.

Records point at each other, so none is equal to another (`eq=False`): a comparison would go round in circles.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import string
import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from grpclib import GRPCError, Status
from modal_proto import api_pb2

ALPHABET = string.ascii_letters + string.digits
DEFAULT_ENVIRONMENT = "main"


def new_id(prefix: str) -> str:
    """A random id; the CLI takes an app id that has not exactly 22 letters and digits for a name."""
    return f"{prefix}-" + "".join(secrets.choice(ALPHABET) for _ in range(22))


def content_id(prefix: str, content: bytes) -> str:
    """The same id for the same content, as a cache of images and of variants wants it."""
    number = int.from_bytes(hashlib.sha256(content).digest(), "big")
    letters = []
    for _ in range(22):
        number, index = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[index])
    return f"{prefix}-" + "".join(letters)


def not_found(what: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, f"{what} not found")


CALLER: ContextVar[Container | None] = ContextVar("CALLER", default=None)
"""The container whose RPC is handled; None where a client outside asks."""


@dataclass(eq=False)
class App:
    id: str
    description: str
    environment: str
    state: int
    tags: dict[str, str]
    name: str = ""
    version: int = 0
    created_at: float = field(default_factory=time.time)
    deployed_at: float = 0.0
    stopped_at: float = 0.0
    stopped_by: str = ""
    heard_at: float = field(default_factory=time.time)
    functions: dict[str, str] = field(default_factory=dict)
    """Tag to id, as published (a function that was only created has no tag yet)."""
    logs: list[LogLine] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        return self.state == api_pb2.APP_STATE_STOPPED


@dataclass(eq=False)
class Function:
    """A function, or a variant of one (`base` is set): each has containers of its own."""

    id: str
    app: App
    metadata: api_pb2.FunctionHandleMetadata
    data: api_pb2.FunctionData = field(default_factory=api_pb2.FunctionData)
    base: Function | None = None
    granted: int = 0
    """Index into the ranked list of GPUs; what the machine turned out to be."""
    pending: deque[Input] = field(default_factory=deque)
    units: list[Unit] = field(default_factory=list)
    failed_starts: int = 0
    """In a row: containers that ended before they asked for an input."""

    @property
    def definition(self) -> api_pb2.Function:
        return self.data.ranked_functions[self.granted].function

    @property
    def name(self) -> str:
        return self.metadata.function_name


@dataclass(eq=False)
class Call:
    id: str
    function: Function
    kind: int
    invocation: int
    parent_input: str
    created_at: float = field(default_factory=time.time)
    inputs: list[Input] = field(default_factory=list)
    finished: list[Input] = field(default_factory=list)
    """In the order in which they ended; a map reads them by position."""
    cleared: int = 0
    """Outputs up to here were taken by a reader who said so."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


@dataclass(eq=False)
class Input:
    id: str
    call: Call
    idx: int
    body: api_pb2.FunctionInput
    retry_count: int = 0
    restarts: int = 0
    """Attempts that infrastructure ended: they use up no retries."""
    attempts: int = 0
    unit: Unit | None = None
    cancelled: bool = False
    started_at: float = 0.0
    deadline: asyncio.TimerHandle | None = None
    output: api_pb2.FunctionGetOutputsItem | None = None

    @property
    def state(self) -> str:
        if self.output is not None:
            return api_pb2.GenericResult.GenericStatus.Name(self.output.result.status).removeprefix(
                "GENERIC_STATUS_"
            )
        return "RUNNING" if self.unit else "PENDING"


@dataclass(eq=False)
class Unit:
    """Containers that work on the same inputs: one, or the ranks of a cluster."""

    id: str
    function: Function
    size: int = 1
    containers: list[Container] = field(default_factory=list)
    running: list[Input] = field(default_factory=list)
    asked: bool = False
    """It asked for an input once, so it started well."""
    draining: bool = False
    """It gets no more inputs."""
    ended: bool = False
    lost: str = ""
    """Why infrastructure ends it (preempted, lost machine); empty if its end is its own."""
    hello: asyncio.Event = field(default_factory=asyncio.Event)
    addresses: dict[int, str] = field(default_factory=dict)


@dataclass(eq=False)
class Container:
    id: str
    unit: Unit
    rank: int
    folder: Path
    gpu: str
    port: int = 0
    process: asyncio.subprocess.Process | None = None
    created_at: float = field(default_factory=time.time)
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int | None = None
    start_result: api_pb2.GenericResult | None = None
    waiting: asyncio.Future[Input | None] | None = None
    """It polls for an input; None tells it to end."""
    holds: list[Input] = field(default_factory=list)
    last: Input | None = None
    """What it prints belongs to this input, also just after its output."""
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    mounts: dict[str, WorkingCopy] = field(default_factory=dict)
    """By volume id."""


@dataclass(eq=False)
class WorkingCopy:
    """What a container sees of a volume, and how it looked when it was last in step with it."""

    path: Path
    published: Path
    read_only: bool
    base: dict[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(eq=False)
class LogLine:
    seq: int
    at: float
    text: str
    source: int
    container: str = ""
    function: str = ""
    call: str = ""
    input: str = ""


@dataclass(eq=False)
class Named:
    """A secret, volume, dict or queue. `values` is the environment of a secret or the entries of a dict."""

    id: str
    name: str
    environment: str
    values: dict = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)


@dataclass(eq=False)
class Image:
    id: str
    definition: api_pb2.Image
    metadata: api_pb2.ImageMetadata
    failure: str = ""


@dataclass(eq=False)
class World:
    folder: Path
    http_url: str = ""
    apps: dict[str, App] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    mounts: dict[str, list[api_pb2.MountFile]] = field(default_factory=dict)
    secrets: dict[str, Named] = field(default_factory=dict)
    volumes: dict[str, Named] = field(default_factory=dict)
    dicts: dict[str, Named] = field(default_factory=dict)
    queues: dict[str, Named] = field(default_factory=dict)
    environments: list[str] = field(default_factory=lambda: [DEFAULT_ENVIRONMENT])
    logged: asyncio.Condition = field(default_factory=asyncio.Condition)

    def path(self, *parts: str) -> Path:
        """A path under the state folder whose parent exists."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def get_or_create(
        self, table: dict[str, Named], prefix: str, request: object, *, may_create: bool = True
    ) -> tuple[Named, bool]:
        """The named or new anonymous object that a `*GetOrCreate` request means, and whether it is new.

        Raises: NOT_FOUND, ALREADY_EXISTS as the creation type of the request says.
        """
        name, environment = request.deployment_name, request.environment_name or DEFAULT_ENVIRONMENT
        kind = request.object_creation_type
        same = (o for o in table.values() if o.name == name and o.environment == environment)
        found = next(same, None) if name else None
        if found and kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"{name!r} exists already")
        if found:
            return found, False
        if kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED or not may_create:
            raise not_found(f"{prefix} {name!r} in environment {environment!r}")
        made = Named(new_id(prefix), name, environment)
        table[made.id] = made
        return made, True

    async def log(self, app: App, line: LogLine) -> None:
        line.seq = len(app.logs) + 1
        app.logs.append(line)
        async with self.logged:
            self.logged.notify_all()
