"""What a client defines: environments, apps and their life, source mounts, images."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import AsyncIterator

from blobs import Blobs
from faults import Faults
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2
from scheduler import Scheduler
from state import (
    DEFAULT_ENVIRONMENT,
    App,
    Function,
    Image,
    World,
    content_id,
    new_id,
    not_found,
)

IMAGE_BUILDER = "2025.06"
PAGE = "http://127.0.0.1/loopback"
EPHEMERAL = {api_pb2.APP_STATE_EPHEMERAL, api_pb2.APP_STATE_INITIALIZING}


class Environments:
    def __init__(self, world: World) -> None:
        self.world = world

    async def environment_get_or_create(
        self, request: api_pb2.EnvironmentGetOrCreateRequest
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        name = request.deployment_name or DEFAULT_ENVIRONMENT
        if name not in self.world.environments:
            if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise not_found(f"environment {name!r}")
            self.world.environments.append(name)
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=content_id("en", name.encode()),
            metadata=api_pb2.EnvironmentMetadata(
                name=name, settings=api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER)
            ),
        )

    async def environment_create(self, request: api_pb2.EnvironmentCreateRequest) -> Empty:
        if request.name in self.world.environments:
            raise GRPCError(Status.ALREADY_EXISTS, f"environment {request.name!r} exists already")
        self.world.environments.append(request.name)
        return Empty()

    async def environment_list(self, request: Empty) -> api_pb2.EnvironmentListResponse:
        items = [
            api_pb2.EnvironmentListItem(
                name=name,
                default=name == DEFAULT_ENVIRONMENT,
                environment_id=content_id("en", name.encode()),
                image_builder_version=IMAGE_BUILDER,
            )
            for name in self.world.environments
        ]
        return api_pb2.EnvironmentListResponse(items=items)

    async def client_hello(self, request: Empty) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER)

    async def workspace_name_lookup(self, request: Empty) -> api_pb2.WorkspaceNameLookupResponse:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name="loopback", username="loopback")


class Apps:
    def __init__(self, world: World, scheduler: Scheduler) -> None:
        self.world, self.scheduler = world, scheduler

    async def app_create(self, request: api_pb2.AppCreateRequest) -> api_pb2.AppCreateResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        app = App(
            new_id("ap"), request.description, environment, request.app_state, dict(request.tags)
        )
        self.world.apps[app.id] = app
        page = f"{PAGE}/{app.id}"
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=page, app_logs_url=page)

    async def app_get_or_create(
        self, request: api_pb2.AppGetOrCreateRequest
    ) -> api_pb2.AppGetOrCreateResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        app = self._deployed(request.app_name, environment)
        if app is None:
            if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise not_found(f"app {request.app_name!r} in environment {environment!r}")
            name, state = request.app_name, api_pb2.APP_STATE_DEPLOYED
            app = App(
                new_id("ap"), name, environment, state, {}, name=name, deployed_at=time.time()
            )
            self.world.apps[app.id] = app
        return api_pb2.AppGetOrCreateResponse(app_id=app.id, handle_metadata=_app_metadata(app))

    async def app_publish(self, request: api_pb2.AppPublishRequest) -> api_pb2.AppPublishResponse:
        app = self.world.apps[request.app_id]
        app.state, app.functions = request.app_state, dict(request.function_ids)
        app.tags.update(request.tags)
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            app.name, app.version, app.deployed_at = request.name, app.version + 1, time.time()
            if (
                app.version > 1
            ):  # Rolling: what works goes on, new inputs get containers of the new version.
                self.scheduler.replace_containers(app)
        return api_pb2.AppPublishResponse(url=f"{PAGE}/{app.id}", deployed_at=app.deployed_at)

    async def app_get_by_deployment_name(
        self, request: api_pb2.AppGetByDeploymentNameRequest
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        reply = api_pb2.AppGetByDeploymentNameResponse(environment_name=environment)
        app = self._deployed(request.name, environment)
        if app is not None:
            reply.app_id = app.id
        else:
            same = [
                a
                for a in self.world.apps.values()
                if (a.name, a.environment) == (request.name, environment)
            ]
            if not same:
                return reply
            app = same[-1]
            reply.previous_app_id = app.id
        reply.lifecycle.CopyFrom(_lifecycle(app))
        return reply

    async def app_get_layout(
        self, request: api_pb2.AppGetLayoutRequest
    ) -> api_pb2.AppGetLayoutResponse:
        return api_pb2.AppGetLayoutResponse(
            app_layout=app_layout(self.world, self.world.apps[request.app_id])
        )

    async def app_heartbeat(self, request: api_pb2.AppHeartbeatRequest) -> Empty:
        self.world.apps[request.app_id].heard_at = time.time()
        return Empty()

    async def app_client_disconnect(self, request: api_pb2.AppClientDisconnectRequest) -> Empty:
        app = self.world.apps[request.app_id]
        if app.state in EPHEMERAL:
            await self.scheduler.stop_app(app)
        elif app.state == api_pb2.APP_STATE_DETACHED:
            app.state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
            await self.scheduler.drain(app)
        return Empty()

    async def app_stop(self, request: api_pb2.AppStopRequest) -> Empty:
        app = self.world.apps[request.app_id]
        app.stopped_by = "loopback"
        await self.scheduler.stop_app(app)
        return Empty()

    async def app_list(self, request: api_pb2.AppListRequest) -> api_pb2.AppListResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        items = [
            api_pb2.AppListResponse.AppListItem(
                app_id=app.id,
                description=app.name or app.description,
                state=app.state,
                created_at=app.created_at,
                stopped_at=app.stopped_at,
                n_running_tasks=len(self.scheduler.alive(app)),
                name=app.name,
            )
            for app in self.world.apps.values()
            if app.environment == environment
        ]
        return api_pb2.AppListResponse(apps=items)

    async def app_get_lifecycle(
        self, request: api_pb2.AppGetLifecycleRequest
    ) -> api_pb2.AppGetLifecycleResponse:
        return api_pb2.AppGetLifecycleResponse(
            lifecycle=_lifecycle(self.world.apps[request.app_id])
        )

    async def app_set_tags(self, request: api_pb2.AppSetTagsRequest) -> Empty:
        self.world.apps[request.app_id].tags = dict(request.tags)
        return Empty()

    async def app_get_tags(self, request: api_pb2.AppGetTagsRequest) -> api_pb2.AppGetTagsResponse:
        return api_pb2.AppGetTagsResponse(tags=self.world.apps[request.app_id].tags)

    async def function_get(
        self, request: api_pb2.FunctionGetRequest
    ) -> api_pb2.FunctionGetResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        app = self._deployed(request.app_name, environment)
        if app is None:
            raise not_found(f"app {request.app_name!r} in environment {environment!r}")
        if request.app_version not in {0, app.version}:
            raise not_found(
                f"version {request.app_version} of app {app.name!r} (only the newest is kept)"
            )
        if request.object_tag not in app.functions:
            raise not_found(f"function {request.object_tag!r} in app {app.name!r}")
        function = self.world.functions[app.functions[request.object_tag]]
        return api_pb2.FunctionGetResponse(
            function_id=function.id, handle_metadata=function.metadata, function=function.data
        )

    def _deployed(self, name: str, environment: str) -> App | None:
        for app in self.world.apps.values():
            if app.name == name and app.environment == environment and not app.stopped:
                return app
        return None


def _lifecycle(app: App) -> api_pb2.AppLifecycle:
    return api_pb2.AppLifecycle(
        app_state=app.state,
        created_at=app.created_at,
        deployed_at=app.deployed_at,
        version=app.version,
        stopped_at=app.stopped_at,
        stopped_by=app.stopped_by,
    )


def _app_metadata(app: App) -> api_pb2.AppHandleMetadata:
    return api_pb2.AppHandleMetadata(
        description=app.description,
        app_id=app.id,
        environment_name=app.environment,
        lifecycle=_lifecycle(app),
        functions=app.functions,
    )


def app_layout(world: World, app: App) -> api_pb2.AppLayout:
    """All functions of an app and all that they depend on: a container looks each dependency up here."""
    layout = api_pb2.AppLayout()
    functions: list[Function] = [
        f for f in world.functions.values() if f.app is app and f.base is None
    ]
    seen = set()
    for function in functions:
        layout.function_ids[function.name] = function.id
        layout.objects.add(object_id=function.id, function_handle_metadata=function.metadata)
        ranked = function.data.ranked_functions
        seen |= {d.object_id for d in ranked[0].function.object_dependencies} if ranked else set()
    for dependency in sorted(seen):
        item = layout.objects.add(object_id=dependency)
        if dependency in world.volumes:
            item.volume_metadata.version = api_pb2.VOLUME_FS_VERSION_V2
            item.volume_metadata.name = world.volumes[dependency].name
    return layout


class Sources:
    """Mounts: files by content, and lists of them by path."""

    def __init__(self, world: World, blobs: Blobs) -> None:
        self.world, self.blobs = world, blobs

    async def mount_batched_check_existence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [h for h in request.sha256_hex_hashes if not self.world.path("files", h).exists()]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def mount_put_file(
        self, request: api_pb2.MountPutFileRequest
    ) -> api_pb2.MountPutFileResponse:
        target = self.world.path("files", request.sha256_hex)
        if request.WhichOneof("data_oneof") == "data_blob_id":
            shutil.copyfile(self.blobs.path(request.data_blob_id), target)
        else:
            target.write_bytes(request.data)
        return api_pb2.MountPutFileResponse(exists=True)

    async def mount_get_or_create(
        self, request: api_pb2.MountGetOrCreateRequest
    ) -> api_pb2.MountGetOrCreateResponse:
        # Modal's own mounts (the client, its Python) are global. Here they are part of the environment that
        # containers run in, so the mount is empty.
        is_global = request.namespace == api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL
        if not is_global and not request.files and request.deployment_name:
            raise not_found(f"mount {request.deployment_name!r}")
        absent = [
            f.filename for f in request.files if not self.world.path("files", f.sha256_hex).exists()
        ]
        if absent:
            raise GRPCError(
                Status.FAILED_PRECONDITION, f"these files were never uploaded: {absent}"
            )
        files = sorted(request.files, key=lambda f: f.filename)
        content = b"".join(f.SerializeToString(deterministic=True) for f in files)
        mount = content_id("mo", content or request.deployment_name.encode())
        self.world.mounts[mount] = files
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount,
            handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex=mount),
        )


class Images:
    """Layers, recorded and not built. `ENV` and `COPY . <folder>` have an effect in containers."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world, self.faults = world, faults

    async def image_get_or_create(
        self, request: api_pb2.ImageGetOrCreateRequest
    ) -> api_pb2.ImageGetOrCreateResponse:
        definition = request.image
        content = (
            definition.SerializeToString(deterministic=True) + request.builder_version.encode()
        )
        image_id = new_id("im") if request.force_build else content_id("im", content)
        known = self.world.images.get(image_id)
        if known and not known.failure:
            result = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
            return api_pb2.ImageGetOrCreateResponse(
                image_id=image_id, result=result, metadata=known.metadata
            )
        metadata = api_pb2.ImageMetadata(image_builder_version=request.builder_version)
        failure = self.faults.before_build(list(definition.dockerfile_commands))
        self.world.images[image_id] = Image(image_id, definition, metadata, failure)
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, metadata=metadata)

    async def image_join_streaming(
        self, request: api_pb2.ImageJoinStreamingRequest
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        image = self.world.images[request.image_id]
        lines = ["loopback: build steps are recorded and not executed"]
        lines += [f"loopback: step {command}" for command in image.definition.dockerfile_commands]
        logs = [
            api_pb2.TaskLogs(
                data=f"{line}\n",
                timestamp=time.time(),
                file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT,
            )
            for line in lines
        ]
        yield api_pb2.ImageJoinStreamingResponse(task_logs=logs, entry_id="1-0")
        status = "GENERIC_STATUS_FAILURE" if image.failure else "GENERIC_STATUS_SUCCESS"
        result = api_pb2.GenericResult(
            status=api_pb2.GenericResult.GenericStatus.Value(status), exception=image.failure
        )
        yield api_pb2.ImageJoinStreamingResponse(
            result=result, metadata=image.metadata, entry_id="2-0", eof=True
        )


def image_effects(world: World, image_id: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The environment of an image, and the (path, sha256) of the files that its layers copy."""
    image = world.images.get(image_id)
    if image is None:
        return {}, []
    environment: dict[str, str] = {}
    files: list[tuple[str, str]] = []
    for base in image.definition.base_images:
        inherited, copied = image_effects(world, base.image_id)
        environment |= inherited
        files += copied
    context = world.mounts.get(image.definition.context_mount_id, [])
    for command in image.definition.dockerfile_commands:
        word, _, rest = command.partition(" ")
        if word == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(rest) if "=" in pair)
        elif word == "COPY" and rest.startswith(". "):
            target = rest[2:].strip().rstrip("/")
            files += [
                (f"{target}/{file.filename.lstrip('/')}", file.sha256_hex) for file in context
            ]
    return environment, files
