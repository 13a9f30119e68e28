"""A command in a container of Modal's, beside what runs there: its output apart, its exit code kept.

Modal's library documents a way for sandboxes only. `modal container exec` goes another one for containers of functions,
but puts errors among the output, passes no input on and forgets the exit code; so this goes its way, and no other file
touches what is private of Modal's client.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from ft.launcher.backends.modal_talk import talking, version
from ft.recipes.errors import DependencyError, NotFoundError

TRIED: Final = "1.6.4"
"""The client whose private parts were read."""
CHUNK_BYTES: Final = 1 << 16


def execute(container: str, words: Sequence[str], *, takes_input: bool) -> int:
    """Run it; its exit code, 128+n after a signal. What it prints goes to our standard output and error as it comes.

    Raises: NotFoundError if the container has ended; DependencyError if this client of Modal's has another way.
    """
    with talking():
        process = _started(container, words)
        outputs = [
            Beside(lambda: _copy(process.stdout, to=1)),
            Beside(lambda: _copy(process.stderr, to=2)),
        ]
        # Nobody waits for it: what was not read when the command ends is not wanted.
        Beside(lambda: _feed(process.stdin, takes_input=takes_input))
        code = int(process.wait())
        for output in outputs:
            output.finish()
    return code


class Beside(threading.Thread):
    """Work that is done meanwhile."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self._error = error

    def finish(self) -> None:
        """Wait for its end. Raises: what it raised."""
        self.join()
        if self._error is not None:
            raise self._error


def _copy(stream: Any, *, to: int) -> None:
    """Into a descriptor of ours."""
    for part in stream:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(to, rest) :]


def _feed(stdin: Any, *, takes_input: bool) -> None:
    # By its number: sys.stdin has a lock, which a thread that waits would hold when Python ends.
    while takes_input and (part := os.read(0, CHUNK_BYTES)):
        stdin.write(part)
        stdin.drain()
    stdin.write_eof()
    stdin.drain()


def _started(container: str, words: Sequence[str]) -> Any:
    """The process, as Modal's library has it. Raises: as `execute`."""
    import modal

    try:
        from modal._utils.async_utils import synchronizer
        from modal.client import _Client
        from modal.container_process import _ContainerProcess
        from modal.sandbox._impl_v1 import command_router_access_fetcher
        from modal.sandbox._task_command_router_client import TaskCommandRouterClient
        from modal_proto import task_command_router_pb2 as router
    except ImportError as error:
        raise DependencyError(
            f"ft cloud exec goes the way that modal {TRIED} has, and modal {version()} has another ({error})",
            hint=f"pip install 'modal=={TRIED}'",
        ) from error

    async def start() -> Any:
        client = await _Client.from_env()
        access = command_router_access_fetcher(client, container)
        connection = await TaskCommandRouterClient.connect(client, container, access)
        name = os.urandom(16).hex()
        request = router.TaskExecStartRequest(
            task_id=container,
            exec_id=name,
            command_args=words,
            stdout_config=router.TASK_EXEC_STDOUT_CONFIG_PIPE,
            stderr_config=router.TASK_EXEC_STDERR_CONFIG_PIPE,
        )
        await connection.exec_start(request)
        return _ContainerProcess(name, container, client, connection, text=False)

    try:
        return synchronizer.create_blocking(start, "start", __name__)()
    except (modal.exception.NotFoundError, modal.exception.ConflictError) as error:
        raise NotFoundError(
            f"its container {container} has ended",
            hint="the same command again, once there is another",
        ) from error
