"""What a container asks and tells, and what it is given to begin with: its files, its volumes, its environment."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from apps import app_layout, image_effects
from containers import Containers
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2
from scheduler import Scheduler
from state import CALLER, Container, WorkingCopy, World
from volumes import fill, published

IDLE_S = 60
HEARTBEAT_HOLD_S = 14.0
"""The client allows 15 s, and is deaf to cancels from the reply to its next heartbeat."""
DRAIN_LOGS_S = 0.01
ARGUMENTS = "__modal/arguments.bin"


class Outfit:
    """Furnishes a container's folder, in a thread: files of its mounts and image, volumes, arguments."""

    def __init__(self, world: World, containers: Containers) -> None:
        self.world, self.containers = world, containers
        self.isolated = bool(containers.isolation)

    def prepare(self, container: Container) -> None:
        root, definition = container.folder / "root", container.unit.function.definition
        if definition.volume_mounts and not self.isolated:
            # Its code would write to these paths of this machine.
            paths = ", ".join(mount.mount_path for mount in definition.volume_mounts)
            raise OSError(f"volumes need isolation: nothing can be mounted at {paths}")
        for name in ("root", "tmp", "proc", "dev", "sys", "run", "__modal"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "usr", "etc"):
            host = Path("/") / name
            if host.is_symlink():
                (root / name).symlink_to(host.readlink())
            elif host.is_dir():
                (root / name).mkdir(exist_ok=True)
        self.containers.interpreter.furnish(root)
        self._hosts(container)
        for path, sha256 in self._files(definition):
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.world.path("files", sha256), target)
        for mount in definition.volume_mounts:
            source = published(self.world, mount.volume_id) / mount.sub_path.strip("/")
            copy = WorkingCopy(root / mount.mount_path.lstrip("/"), source, mount.read_only)
            fill(copy)
            container.mounts[mount.volume_id] = copy
        (root / ARGUMENTS).write_bytes(self._arguments(container).SerializeToString())

    def _files(self, definition: api_pb2.Function) -> list[tuple[str, str]]:
        _, files = image_effects(self.world, definition.image_id)
        for mount in definition.mount_ids:
            files += [(file.filename, file.sha256_hex) for file in self.world.mounts[mount]]
        return files

    def _hosts(self, container: Container) -> None:
        """Each rank of a cluster has an address of its own on loopback, so that a mixed-up one shows."""
        hosts = Path("/etc/hosts")
        text = hosts.read_text(encoding="utf-8") if hosts.exists() else ""
        text += f"\n::ffff:127.0.0.{container.rank + 1} i6pn.modal.local\n"
        (container.folder / "hosts").write_text(text, encoding="utf-8")

    def _arguments(self, container: Container) -> api_pb2.ContainerArguments:
        function = container.unit.function
        return api_pb2.ContainerArguments(
            task_id=container.id,
            function_id=function.id,
            app_id=function.app.id,
            function_def=function.definition,
            environment_name=function.app.environment,
            app_layout=app_layout(self.world, function.app),
        )

    def environment(self, container: Container) -> dict[str, str]:
        """Nothing of the server's own environment: the interpreter's, the image's, Modal's and the secrets'."""
        function = container.unit.function
        definition = function.definition
        home = "/root" if self.isolated else str(container.folder / "root" / "root")
        arguments = f"/{ARGUMENTS}" if self.isolated else str(container.folder / "root" / ARGUMENTS)
        found = self.containers.interpreter.environment(isolated=self.isolated)
        found |= {"HOME": home, "PYTHONPATH": home, "LANG": "C.UTF-8"}
        found |= image_effects(self.world, definition.image_id)[0]
        for secret in definition.secret_ids:
            found |= self.world.secrets[secret].values
        return found | {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{container.port}",
            "MODAL_TASK_ID": container.id,
            "MODAL_IS_REMOTE": "1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": arguments,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
            "MODAL_REGION": "loopback",
            "MODAL_ENVIRONMENT": function.app.environment,
            "MODAL_IMAGE_ID": definition.image_id,
        }


class Worker:
    def __init__(self, world: World, scheduler: Scheduler) -> None:
        self.world, self.scheduler = world, scheduler

    async def container_hello(self, request: Empty) -> Empty:
        _caller().started_at = time.time()
        return Empty()

    async def function_get_inputs(
        self, request: api_pb2.FunctionGetInputsRequest
    ) -> api_pb2.FunctionGetInputsResponse:
        """The next input, once there is one; the kill switch if the container is to end or waited long enough."""
        container = _caller()
        unit = container.unit
        unit.asked = True
        if unit.draining:
            return _end_of_inputs()
        container.waiting = asyncio.get_running_loop().create_future()
        self.scheduler.dispatch(unit.function)
        idle_s = unit.function.definition.task_idle_timeout_secs or IDLE_S
        try:
            item = await asyncio.wait_for(container.waiting, idle_s)
        except TimeoutError:
            if container.holds:  # It works on others.
                return api_pb2.FunctionGetInputsResponse()
            self.scheduler.retire(unit)
            item = None
        finally:
            container.waiting = None
        if item is None:
            return _end_of_inputs()
        reply = api_pb2.FunctionGetInputsItem(
            input_id=item.id,
            input=item.body,
            function_call_id=item.call.id,
            function_call_invocation_type=item.call.invocation,
            retry_count=item.retry_count,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[reply])

    async def function_put_outputs(self, request: api_pb2.FunctionPutOutputsRequest) -> Empty:
        """The output of rank 0 is the output. One for an attempt that is over already is dropped."""
        container = _caller()
        await asyncio.sleep(DRAIN_LOGS_S)  # What it printed before is read first.
        for given in request.outputs:
            item = self.world.inputs[given.input_id]
            container.holds = [held for held in container.holds if held is not item]
            if (
                item.unit is not container.unit
                or container.rank
                or given.retry_count != item.retry_count
            ):
                continue
            output = api_pb2.FunctionGetOutputsItem(
                result=given.result,
                data_format=given.data_format,
                task_id=container.id,
                input_started_at=given.input_started_at,
                output_created_at=given.output_created_at,
            )
            if (
                output.result.status == api_pb2.GenericResult.GENERIC_STATUS_TERMINATED
                and not output.result.exception
            ):
                output.result.exception = "Input was cancelled by user"
            self.scheduler.attempt_ended(item, output)
        return Empty()

    async def container_heartbeat(
        self, request: api_pb2.ContainerHeartbeatRequest
    ) -> api_pb2.ContainerHeartbeatResponse:
        """Carries cancels. The container drops one for an input that it does not know yet, so each is repeated."""
        container = _caller()
        try:
            async with asyncio.timeout(HEARTBEAT_HOLD_S):
                await container.cancel.wait()
        except TimeoutError:
            return api_pb2.ContainerHeartbeatResponse()
        cancelled = [item.id for item in container.holds if item.cancelled]
        if not cancelled:
            container.cancel.clear()
        event = api_pb2.CancelInputEvent(input_ids=cancelled)
        return api_pb2.ContainerHeartbeatResponse(cancel_input_event=event)

    async def task_result(self, request: api_pb2.TaskResultRequest) -> Empty:
        _caller().start_result = request.result
        return Empty()

    async def function_get_dynamic_concurrency(
        self, request: api_pb2.FunctionGetDynamicConcurrencyRequest
    ) -> api_pb2.FunctionGetDynamicConcurrencyResponse:
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=request.target_concurrency)

    async def task_cluster_hello(
        self, request: api_pb2.TaskClusterHelloRequest
    ) -> api_pb2.TaskClusterHelloResponse:
        """Answers once every rank is there."""
        container = self.world.containers[request.task_id]
        unit = container.unit
        unit.addresses[container.rank] = request.container_ip
        if len(unit.addresses) == unit.size:
            unit.hello.set()
        await unit.hello.wait()
        return api_pb2.TaskClusterHelloResponse(
            cluster_id=unit.id,
            cluster_rank=container.rank,
            container_ips=[unit.addresses[rank] for rank in range(unit.size)],
            container_ipv4_ips=[f"127.0.0.{rank + 1}" for rank in range(unit.size)],
        )

    async def cluster_get(self, request: api_pb2.ClusterGetRequest) -> api_pb2.ClusterGetResponse:
        members = [c for c in self.world.containers.values() if c.unit.id == request.cluster_id]
        members.sort(key=lambda container: container.rank)
        app_id = members[0].unit.function.app.id if members else ""
        stats = api_pb2.ClusterStats(
            app_id=app_id, cluster_id=request.cluster_id, task_ids=[c.id for c in members]
        )
        return api_pb2.ClusterGetResponse(cluster=stats)

    async def container_stop(
        self, request: api_pb2.ContainerStopRequest
    ) -> api_pb2.ContainerStopResponse:
        """At once: as a preemption. Graceful: it ends what it has and gets no more."""
        unit = self.world.containers[request.task_id].unit
        if request.graceful:
            self.scheduler.retire(unit)
        else:
            self.scheduler.interrupt(unit, "stopped by the user", STOP_GRACE_S)
        return api_pb2.ContainerStopResponse()

    async def task_list(self, request: api_pb2.TaskListRequest) -> api_pb2.TaskListResponse:
        tasks = [
            api_pb2.TaskStats(
                task_id=container.id,
                app_id=container.unit.function.app.id,
                app_description=container.unit.function.app.name
                or container.unit.function.app.description,
                started_at=container.started_at,
                enqueued_at=container.created_at,
            )
            for container in self.scheduler.alive()
            if request.app_id in {"", container.unit.function.app.id}
        ]
        return api_pb2.TaskListResponse(tasks=tasks)

    async def task_get_info(
        self, request: api_pb2.TaskGetInfoRequest
    ) -> api_pb2.TaskGetInfoResponse:
        container = self.world.containers[request.task_id]
        info = api_pb2.TaskInfo(
            id=container.id,
            enqueued_at=container.created_at,
            started_at=container.started_at,
            finished_at=container.finished_at,
            gpu_config=container.unit.function.definition.resources.gpu_config,
        )
        return api_pb2.TaskGetInfoResponse(app_id=container.unit.function.app.id, info=info)


STOP_GRACE_S = 5.0


def _caller() -> Container:
    container = CALLER.get()
    assert container is not None, "this RPC is for containers"
    return container


def _end_of_inputs() -> api_pb2.FunctionGetInputsResponse:
    return api_pb2.FunctionGetInputsResponse(
        inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)]
    )
