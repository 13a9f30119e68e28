"""Who works on what: starts containers for inputs, retries, restarts, times out, cancels and stops.

Every rule here is our reading of Modal's documentation, see README.md.
"""

from __future__ import annotations

import asyncio
import time

from containers import Containers
from modal_proto import api_pb2
from state import App, Call, Container, Function, Input, Unit, World, new_id

FAILED_STARTS = 3
"""In a row, before the inputs that wait fail: a container that cannot start is not started for ever."""
RESTARTS = 8
"""Of one input because of infrastructure."""
CONTAINERS_PER_FUNCTION = 4
STOP_GRACE_S = 5.0
TERMINATE_GRACE_S = 2.0

Result = api_pb2.GenericResult


def result(status: str, why: str) -> api_pb2.GenericResult:
    return Result(status=Result.GenericStatus.Value(f"GENERIC_STATUS_{status}"), exception=why)


class Scheduler:
    def __init__(self, world: World, containers: Containers) -> None:
        self.world, self.containers = world, containers
        self.tasks: set[asyncio.Task[None]] = set()
        containers.on_end = self.container_ended

    # Inputs to containers.

    def submit(self, item: Input, *, first: bool = False) -> None:
        if item.output is not None:
            return  # Cancelled while it waited for its retry.
        queue = item.call.function.pending
        queue.appendleft(item) if first else queue.append(item)
        self.dispatch(item.call.function)

    def dispatch(self, function: Function) -> None:
        """Hand inputs to containers that wait, and start as many as the rest needs."""
        if function.app.stopped:
            return
        for unit in function.units:
            while function.pending and self._waits(unit):
                self._hand_over(unit, function.pending.popleft())
        slots = sum(
            max(0, _concurrency(u.function) - len(u.running))
            for u in function.units
            if not u.draining
        )
        most = min(
            function.definition.concurrency_limit or CONTAINERS_PER_FUNCTION,
            CONTAINERS_PER_FUNCTION,
        )
        while len(function.pending) > slots and len(function.units) < most:
            self._start(function)
            slots += _concurrency(function)

    def _waits(self, unit: Unit) -> bool:
        polling = [c for c in unit.containers if c.waiting is not None and not c.waiting.done()]
        return (
            len(polling) == unit.size
            and not unit.draining
            and len(unit.running) < _concurrency(unit.function)
        )

    def _hand_over(self, unit: Unit, item: Input) -> None:
        item.unit, item.started_at = unit, time.time()
        item.attempts += 1
        unit.running.append(item)
        definition = unit.function.definition
        unit.draining = definition.single_use_containers
        for container in unit.containers:
            container.holds.append(item)
            container.last = item
            assert container.waiting is not None
            container.waiting.set_result(item)
        if definition.timeout_secs:
            loop = asyncio.get_running_loop()
            item.deadline = loop.call_later(definition.timeout_secs, self.time_out, item)

    def _start(self, function: Function) -> None:
        unit = Unit(
            new_id("cu"), function, size=max(1, function.definition._experimental_group_size)
        )
        function.units.append(unit)
        for rank in range(unit.size):
            self._spawn(self.containers.run(unit, rank))

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # How an attempt ends.

    def attempt_ended(self, item: Input, output: api_pb2.FunctionGetOutputsItem) -> None:
        """An attempt has this output: it is the input's own, or the retry policy tries once more."""
        policy = item.call.function.definition.retry_policy
        status = output.result.status
        good = {Result.GENERIC_STATUS_SUCCESS, Result.GENERIC_STATUS_TERMINATED}
        if status in good or item.cancelled or item.retry_count >= policy.retries:
            self.finish(item, output)
            return
        delay_ms = policy.initial_delay_ms * (policy.backoff_coefficient or 1.0) ** item.retry_count
        self._release(item)
        item.retry_count += 1
        delay_s = min(delay_ms, policy.max_delay_ms or delay_ms) / 1000
        asyncio.get_running_loop().call_later(delay_s, self.submit, item)

    def fail_attempt(self, item: Input, status: str, why: str) -> None:
        self.attempt_ended(item, api_pb2.FunctionGetOutputsItem(result=result(status, why)))

    def finish(self, item: Input, output: api_pb2.FunctionGetOutputsItem) -> None:
        """Give an input its output. The first one counts."""
        if item.output is not None:
            return
        output.idx, output.input_id, output.retry_count = item.idx, item.id, item.retry_count
        self._release(item)
        if item in item.call.function.pending:
            item.call.function.pending.remove(item)
        item.output = output
        item.call.finished.append(item)
        self._spawn(self._tell(item.call))

    async def _tell(self, call: Call) -> None:
        async with call.changed:
            call.changed.notify_all()
        await self.drain(call.function.app)

    def _release(self, item: Input) -> None:
        if item.deadline is not None:
            item.deadline.cancel()
        if item.unit is not None:
            item.unit.running.remove(item)
            for container in item.unit.containers:
                container.holds = [held for held in container.holds if held is not item]
        item.unit = None

    def time_out(self, item: Input) -> None:
        """The attempt hit its timeout: its container is killed, with what it had not committed."""
        unit = item.unit
        if unit is None:
            return
        timeout_s = item.call.function.definition.timeout_secs
        self.fail_attempt(item, "TIMEOUT", f"Task's current input hit its timeout of {timeout_s}s")
        self.lose(unit, "another input timed out")

    def container_ended(self, container: Container) -> None:
        unit, function = container.unit, container.unit.function
        if unit.ended:
            return
        unit.ended = unit.draining = True
        function.units.remove(unit)
        for other in unit.containers:  # A cluster ends with its first rank.
            self.containers.kill(other)
        for item in list(unit.running):
            self._end_in_container(item, unit, container)
        # A good start ends the row; an end that was asked for is no failed start.
        function.failed_starts = 0 if unit.asked or unit.lost else function.failed_starts + 1
        if function.failed_starts >= FAILED_STARTS:
            function.failed_starts = 0
            why = container.start_result or result(
                "FAILURE", f"container ended with {container.exit_code} at its start"
            )
            for item in list(function.pending):
                self.finish(item, api_pb2.FunctionGetOutputsItem(result=why))
        self.dispatch(function)
        self._spawn(self._note_end(function.app))

    def _end_in_container(self, item: Input, unit: Unit, container: Container) -> None:
        if item.cancelled:
            self.finish(item, _terminated("Input was cancelled by user"))
        elif unit.lost and item.restarts >= RESTARTS:
            self.finish(
                item, api_pb2.FunctionGetOutputsItem(result=result("INTERNAL_FAILURE", unit.lost))
            )
        elif unit.lost:
            item.restarts += 1
            self._release(item)
            self.submit(item, first=True)
        else:
            self.fail_attempt(
                item, "FAILURE", f"container ended with exit code {container.exit_code}"
            )

    async def _note_end(self, app: App) -> None:
        async with (
            self.world.logged
        ):  # Who follows the logs of a stopped app waits for its last container.
            self.world.logged.notify_all()

    # Ends that somebody asked for.

    def retire(self, unit: Unit) -> None:
        """No more inputs; the container ends by itself when it has none."""
        unit.draining = True
        for container in unit.containers:
            if container.waiting is not None and not container.waiting.done():
                container.waiting.set_result(None)

    def lose(self, unit: Unit, why: str) -> None:
        """Kill at once; what ran in it starts again elsewhere."""
        unit.lost, unit.draining = why, True
        for container in unit.containers:
            self.containers.kill(container)

    def interrupt(self, unit: Unit, why: str, grace_s: float, *, group: bool = False) -> None:
        """SIGINT, then SIGKILL after the grace; what has no output by then starts again in a new container."""
        unit.lost, unit.draining = why, True
        for container in unit.containers:
            self._spawn(self.containers.interrupt(container, grace_s, group=group))

    def cancel(self, call: Call, *, terminate: bool) -> None:
        """Inputs that wait end here; those that run when their container says so, or with it (`terminate`)."""
        for item in call.inputs:
            if item.output is not None:
                continue
            item.cancelled = True
            unit = item.unit
            if unit is None or terminate:
                self.finish(item, _terminated("Input was cancelled by user"))
            if unit is not None and terminate:
                self.interrupt(unit, "terminated by cancel", TERMINATE_GRACE_S)
            elif unit is not None:
                for container in unit.containers:
                    container.cancel.set()

    async def stop_app(self, app: App) -> None:
        if app.stopped:
            return
        app.state, app.stopped_at = api_pb2.APP_STATE_STOPPED, time.time()
        for function in [f for f in self.world.functions.values() if f.app is app]:
            for item in list(function.pending):
                self.finish(item, _terminated("the app was stopped"))
            for unit in list(function.units):
                for item in list(unit.running):
                    self.finish(item, _terminated("the app was stopped"))
                self.interrupt(unit, "the app was stopped", STOP_GRACE_S)
        for (
            call
        ) in self.world.calls.values():  # Inputs that waited for their retry are in no queue.
            for item in call.inputs if call.function.app is app else ():
                self.finish(item, _terminated("the app was stopped"))
        await self._note_end(app)

    async def drain(self, app: App) -> None:
        """A detached app whose client left stops with its last input."""
        if app.state != api_pb2.APP_STATE_DETACHED_DISCONNECTED:
            return
        calls = [call for call in self.world.calls.values() if call.function.app is app]
        if all(item.output is not None for call in calls for item in call.inputs):
            await self.stop_app(app)

    def replace_containers(self, app: App) -> None:
        for function in self.world.functions.values():
            if function.app is app:
                for unit in function.units:
                    self.retire(unit)

    async def stop_silent_apps(self, after_s: float) -> None:
        """For ever: stop ephemeral apps whose client sends no more heartbeats."""
        while True:
            await asyncio.sleep(1.0)
            for app in list(self.world.apps.values()):
                if (
                    app.state == api_pb2.APP_STATE_EPHEMERAL
                    and time.time() - app.heard_at > after_s
                ):
                    await self.stop_app(app)

    def alive(self, app: App | None = None) -> list[Container]:
        return [
            container
            for container in self.world.containers.values()
            if not container.finished_at and app in {None, container.unit.function.app}
        ]


def _concurrency(function: Function) -> int:
    definition = function.definition
    return definition.target_concurrent_inputs or definition.max_concurrent_inputs or 1


def _terminated(why: str) -> api_pb2.FunctionGetOutputsItem:
    return api_pb2.FunctionGetOutputsItem(result=result("TERMINATED", why))
