"""Logs of apps: follow, fetch, count; by function, call, container and source."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2
from scheduler import Scheduler
from state import App, LogLine, World, not_found

DEFAULT_LIMIT = 500


class Logs:
    def __init__(self, world: World, scheduler: Scheduler) -> None:
        self.world, self.scheduler = world, scheduler

    async def app_get_logs(
        self, request: api_pb2.AppGetLogsRequest
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        """From `last_entry_id` on, until `timeout`; `app_done` once nothing can follow."""
        app = self._app(request.app_id)
        at = int(request.last_entry_id.partition("-")[0] or 0)
        until = time.monotonic() + (request.timeout or 55.0)
        while True:
            for line in app.logs[at:]:
                at = line.seq
                if _wanted(line, request, request.file_descriptor):
                    yield _batch(line)
            if app.stopped and not self.scheduler.alive(app) and at == len(app.logs):
                yield api_pb2.TaskLogsBatch(entry_id=f"{at}-0", app_done=True)
                return
            try:
                async with asyncio.timeout(until - time.monotonic()), self.world.logged:
                    if at == len(app.logs):
                        await self.world.logged.wait()
            except TimeoutError:
                return

    async def app_fetch_logs(
        self, request: api_pb2.AppFetchLogsRequest
    ) -> api_pb2.AppFetchLogsResponse:
        """The newest `limit` lines of the time range, in their order."""
        lines = self._range(request)[-(request.limit or DEFAULT_LIMIT) :]
        return api_pb2.AppFetchLogsResponse(batches=[_batch(line) for line in lines])

    async def app_count_logs(
        self, request: api_pb2.AppCountLogsRequest
    ) -> api_pb2.AppCountLogsResponse:
        width = request.bucket_secs or 60
        counts: Counter[tuple[int, int]] = Counter()
        for line in self._range(request):
            counts[int(line.at // width) * width, line.source] += 1
        buckets = [
            api_pb2.AppCountLogsResponse.LogBucket(
                bucket_start_at=Timestamp(seconds=start),
                stdout_logs=counts[start, api_pb2.FILE_DESCRIPTOR_STDOUT],
                stderr_logs=counts[start, api_pb2.FILE_DESCRIPTOR_STDERR],
                system_logs=counts[start, api_pb2.FILE_DESCRIPTOR_INFO],
            )
            for start in sorted({start for start, _ in counts})
        ]
        return api_pb2.AppCountLogsResponse(app_id=request.app_id, buckets=buckets)

    def _range(self, request: object) -> list[LogLine]:
        since = _seconds(request.since) if request.HasField("since") else 0.0
        until = _seconds(request.until) if request.HasField("until") else float("inf")
        lines = self._app(request.app_id).logs
        return [x for x in lines if since <= x.at <= until and _wanted(x, request, request.source)]

    def _app(self, app_id: str) -> App:
        if app_id not in self.world.apps:
            raise not_found(f"app {app_id}")
        return self.world.apps[app_id]


def _wanted(line: LogLine, request: object, source: int) -> bool:
    return (
        request.function_id in {"", line.function}
        and request.function_call_id in {"", line.call}
        and request.task_id in {"", line.container}
        and source in {api_pb2.FILE_DESCRIPTOR_UNSPECIFIED, line.source}
        and request.search_text in line.text
    )


def _batch(line: LogLine) -> api_pb2.TaskLogsBatch:
    item = api_pb2.TaskLogs(
        data=line.text,
        timestamp=line.at,
        timestamp_ns=int(line.at * 1e9),
        file_descriptor=line.source,
        function_call_id=line.call,
        input_id=line.input,
        container_id=line.container,
    )
    return api_pb2.TaskLogsBatch(
        task_id=line.container,
        items=[item],
        entry_id=f"{line.seq}-0",
        function_id=line.function,
        root_function_id=line.function,
        input_id=line.input,
    )


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9
