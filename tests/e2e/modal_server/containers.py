"""Containers: processes that run Modal's own container entrypoint, where possible in a root folder of their own."""

from __future__ import annotations

import asyncio
import codecs
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from edge import Edge
from grpclib.server import Server
from interpreter import Interpreter
from modal_proto import api_pb2
from state import Container, LogLine, Unit, World, new_id, not_found

STDOUT, STDERR, INFO = (
    api_pb2.FILE_DESCRIPTOR_STDOUT,
    api_pb2.FILE_DESCRIPTOR_STDERR,
    api_pb2.FILE_DESCRIPTOR_INFO,
)
CHUNK = 1 << 16
LONGEST_PART = 4096
"""A line without an end (a progress bar) is logged in parts of this size."""
HOST_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "usr", "etc")
ENTRYPOINT = ["-u", "-m", "modal._container_entrypoint"]
DIE_WITH_SERVER = ["setpriv", "--pdeathsig", "KILL"]
NAMESPACES = (
    ["unshare", "--mount", "--pid", "--fork", "--kill-child"],
    ["unshare", "--map-root-user", "--user", "--mount", "--pid", "--fork", "--kill-child"],
)


def find_isolation(scratch: Path) -> list[str]:
    """The command that gives a container its own mounts and processes here; empty where the kernel forbids it."""
    scratch.mkdir(parents=True, exist_ok=True)
    trial = f"mount -t tmpfs tmpfs {shlex.quote(str(scratch))} && mount --rbind /usr {shlex.quote(str(scratch))}"
    for command in NAMESPACES:
        try:
            if (
                subprocess.run(
                    [*command, "sh", "-c", trial], capture_output=True, check=False
                ).returncode
                == 0
            ):
                return command
        except FileNotFoundError:
            return []
    return []


class Containers:
    """Starts, signals and ends containers. `on_end` is called once for each, after its last log line."""

    def __init__(self, world: World, interpreter: Interpreter, isolation: list[str]) -> None:
        self.world, self.interpreter, self.isolation = world, interpreter, isolation
        self.edge: Edge | None = None
        self.on_end: Callable[[Container], None] = lambda _: None
        self.prepare: Callable[[Container], None] = lambda _: None
        self.environment: Callable[[Container], dict[str, str]] = lambda _: {}

    async def run(self, unit: Unit, rank: int) -> None:
        """One container from its folder to its last line."""
        wanted = unit.function.definition.resources.gpu_config
        container_id = new_id("ta")
        folder = self.world.path("containers", container_id)
        gpu = f"{wanted.gpu_type}:{wanted.count}" if wanted.count else ""
        container = Container(container_id, unit, rank, folder, gpu)
        unit.containers.append(container)
        self.world.containers[container_id] = container
        assert self.edge is not None
        server, container.port = await self.edge.listen(container)
        try:
            await asyncio.to_thread(self.prepare, container)
            if not unit.ended and not unit.lost:
                await self._execute(container)
        except OSError as error:
            why = f"loopback: the container could not start: {error}"
            await self._log(container, f"{why}\n", INFO)
            failure = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
            container.start_result = api_pb2.GenericResult(status=failure, exception=why)
        finally:
            await self._end(container, server)

    async def _execute(self, container: Container) -> None:
        if not self.isolation:
            text = "loopback: NOT isolated: /root and absolute mount paths are not those of the container\n"
            await self._log(container, text, INFO)
        process = await asyncio.create_subprocess_exec(
            *self._command(container),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(container),
            cwd=container.folder / "root" / "root",
            start_new_session=True,
        )
        container.process = process
        assert process.stdout is not None
        assert process.stderr is not None
        pumps = [
            self._pump(container, process.stdout, STDOUT),
            self._pump(container, process.stderr, STDERR),
        ]
        await asyncio.gather(*pumps, process.wait())

    async def _end(self, container: Container, server: Server) -> None:
        process = container.process
        code = process.returncode if process and process.returncode is not None else -1
        container.exit_code = (
            128 - code if process and code < 0 else code
        )  # By a signal, as a shell says it.
        container.finished_at = time.time()
        self.kill(container)  # What the main process left behind in its group.
        server.close()
        for copy in container.mounts.values():
            await asyncio.to_thread(shutil.rmtree, copy.path, ignore_errors=True)
        self.on_end(container)

    def _command(self, container: Container) -> list[str]:
        die = DIE_WITH_SERVER if shutil.which(DIE_WITH_SERVER[0]) else []
        if not self.isolation:
            return [*die, str(self.interpreter.executable), *ENTRYPOINT]
        script = container.folder / "enter.sh"
        script.write_text(self._script(container), encoding="utf-8")
        return [*die, *self.isolation, "sh", str(script)]

    def _script(self, container: Container) -> str:
        """What turns the container's folder into its root. All mounts vanish with its last process."""
        root = container.folder / "root"
        lines = [
            "set -e",
            'ro() { mount --rbind "$1" "$2"; mount -o remount,bind,ro "$2" || echo "loopback: $2 is writable" >&2; }',
        ]

        def mount(command: str, *words: object) -> None:
            lines.append(" ".join([command, *(shlex.quote(str(word)) for word in words)]))

        for name in HOST_FOLDERS:
            host = Path("/") / name
            if host.is_dir() and not host.is_symlink():
                mount("ro", host, root / name)
        if Path("/etc/hosts").exists():
            mount("mount --bind", container.folder / "hosts", root / "etc" / "hosts")
        mount("mount --rbind /dev", root / "dev")
        mount("mount -t tmpfs tmpfs", root / "dev" / "shm")
        mount("mount --rbind /sys", root / "sys")
        # A user namespace inside a container may not mount a /proc of its own.
        lines.append(
            f"mount -t proc proc {root}/proc 2>/dev/null || mount --rbind /proc {root}/proc"
        )
        for source, target in self.interpreter.mounts():
            mount("ro", source, root / target.lstrip("/"))
        for copy in container.mounts.values():
            if copy.read_only:
                mount("ro", copy.path, copy.path)
        inner = 'cd /root && exec "$@"'
        python = [self.interpreter.inside, *ENTRYPOINT]
        # Not exec: this shell stays as the first process of the namespace, which is what a signal to oneself needs.
        mount("chroot", root, "/bin/sh", "-c", inner, "sh", *python)
        return "\n".join([*lines, "exit $?", ""]).replace("\nchroot ", "\nset +e\nchroot ")

    # Logs.

    async def _pump(self, container: Container, stream: asyncio.StreamReader, source: int) -> None:
        async for text in _lines(stream):
            await self._log(container, text, source)

    async def _log(self, container: Container, text: str, source: int) -> None:
        function, item = container.unit.function, container.last
        line = LogLine(0, time.time(), text, source, container.id, function.id)
        if item is not None:
            line.call, line.input = item.call.id, item.id
        await self.world.log(function.app, line)

    # Signals.

    def kill(self, container: Container) -> None:
        """SIGKILL to all of it."""
        if container.process is not None:
            _signal_group(container.process.pid, signal.SIGKILL)

    async def interrupt(self, container: Container, grace_s: float, *, group: bool) -> None:
        """SIGINT to its main process (or its process group), SIGKILL to all of it after the grace."""
        process = container.process
        if process is None or process.returncode is not None:
            return
        if not container.started_at:
            self.kill(container)  # It runs no code of the user yet.
        elif group:
            _signal_group(process.pid, signal.SIGINT)
        elif main := self.main_pid(container):
            _signal(main, signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except TimeoutError:
            self.kill(container)

    def main_pid(self, container: Container) -> int | None:
        """The process that runs the entrypoint, as this machine numbers it; None before it exists."""
        if container.process is None or container.process.returncode is not None:
            return None
        pid = container.process.pid
        children = _children()
        for _ in range(2 if self.isolation else 0):  # unshare, its shell, the entrypoint.
            if not children[pid]:
                return None
            pid = children[pid][0]
        return pid

    async def enter(self, container: Container, command: list[str]) -> asyncio.subprocess.Process:
        """Run a command in a running container: its root, its processes, its environment. It ends with the container.

        Raises: NOT_FOUND if the container has ended.
        """
        main = self.main_pid(container)
        if main is None:
            raise not_found(f"a running container {container.id}")
        die = DIE_WITH_SERVER if shutil.which(DIE_WITH_SERVER[0]) else []
        way = ["nsenter", "--target", str(main), "--mount", "--pid", "--root", "--wd"]
        if "--user" in self.isolation:
            way += ["--user", "--preserve-credentials"]
        return await asyncio.create_subprocess_exec(
            *die,
            *(way if self.isolation else []),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment(container),
            cwd=container.folder / "root" / "root",
            start_new_session=True,
        )

    def has_open(self, container: Container, folder: Path) -> bool:
        """Whether a process of the container has a file below the folder open, or is in it."""
        inside = {_identity(folder)} | {_identity(path) for path in folder.rglob("*")}
        children = _children()
        todo = [container.process.pid] if container.process else []
        while todo:
            pid = todo.pop()
            todo += children[pid]
            proc = Path("/proc") / str(pid)
            try:
                held = [proc / "cwd", *(proc / "fd").iterdir()]
            except OSError:
                continue  # It ended meanwhile.
            if any(_identity(path) in inside for path in held):
                return True
        return False


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    while chunk := await stream.read(CHUNK):
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            yield f"{line}\n"
        if len(rest) > LONGEST_PART or rest.endswith("\r"):
            yield rest
            rest = ""
    if rest:
        yield rest


def _children() -> defaultdict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2]
            except OSError:
                continue
            found[int(after_name.split()[1])].append(int(entry.name))
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
