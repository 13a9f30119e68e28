"""Small named things: secrets, dicts and queues."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2
from state import DEFAULT_ENVIRONMENT, Named, World


def created(item: Named) -> api_pb2.CreationInfo:
    return api_pb2.CreationInfo(created_at=item.created_at, created_by="loopback")


def listed(table: dict[str, Named], environment: str) -> list[Named]:
    """What has a name in this environment, the newest first."""
    environment = environment or DEFAULT_ENVIRONMENT
    found = [item for item in table.values() if item.name and item.environment == environment]
    return sorted(found, key=lambda item: -item.created_at)


class Secrets:
    """Values stay in memory; they leave it as the environment of a container only."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def secret_get_or_create(
        self, request: api_pb2.SecretGetOrCreateRequest
    ) -> api_pb2.SecretGetOrCreateResponse:
        secret, is_new = self.world.get_or_create(self.world.secrets, "st", request)
        overwrite = (
            request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
        )
        if is_new or overwrite:
            secret.values = dict(request.env_dict)
        missing = [key for key in request.required_keys if key not in secret.values]
        if missing:
            raise GRPCError(
                Status.NOT_FOUND, f"secret {secret.name!r} has no key {', '.join(missing)}"
            )
        return api_pb2.SecretGetOrCreateResponse(
            secret_id=secret.id, metadata=_secret_metadata(secret)
        )

    async def secret_get_info(
        self, request: api_pb2.SecretGetInfoRequest
    ) -> api_pb2.SecretGetInfoResponse:
        return api_pb2.SecretGetInfoResponse(
            metadata=_secret_metadata(self.world.secrets[request.secret_id])
        )

    async def secret_update(self, request: api_pb2.SecretUpdateRequest) -> Empty:
        values = self.world.secrets[request.secret_id].values
        for update in request.updates:
            if update.HasField("value"):
                values[update.key] = update.value
            else:
                values.pop(update.key, None)
        return Empty()

    async def secret_list(self, request: api_pb2.SecretListRequest) -> api_pb2.SecretListResponse:
        items = [
            api_pb2.SecretListItem(
                label=secret.name,
                created_at=secret.created_at,
                environment_name=secret.environment,
                secret_id=secret.id,
                metadata=_secret_metadata(secret),
            )
            for secret in listed(self.world.secrets, request.environment_name)
        ]
        return api_pb2.SecretListResponse(items=items, environment_name=request.environment_name)

    async def secret_delete(self, request: api_pb2.SecretDeleteRequest) -> Empty:
        del self.world.secrets[request.secret_id]
        return Empty()


def _secret_metadata(secret: Named) -> api_pb2.SecretMetadata:
    return api_pb2.SecretMetadata(
        name=secret.name,
        creation_info=created(secret),
        keys=sorted(secret.values),
        environment_name=secret.environment,
    )


class Dicts:
    """Keys and values are bytes that the client pickled. An update is atomic: there is one event loop."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def dict_get_or_create(
        self, request: api_pb2.DictGetOrCreateRequest
    ) -> api_pb2.DictGetOrCreateResponse:
        item, is_new = self.world.get_or_create(self.world.dicts, "di", request)
        if is_new:
            item.values = {entry.key: entry.value for entry in request.data}
        return api_pb2.DictGetOrCreateResponse(dict_id=item.id, metadata=_dict_metadata(item))

    async def dict_get_by_id(
        self, request: api_pb2.DictGetByIdRequest
    ) -> api_pb2.DictGetByIdResponse:
        item = self.world.dicts[request.dict_id]
        return api_pb2.DictGetByIdResponse(dict_id=item.id, metadata=_dict_metadata(item))

    async def dict_list(self, request: api_pb2.DictListRequest) -> api_pb2.DictListResponse:
        items = [
            api_pb2.DictListResponse.DictInfo(
                name=item.name,
                created_at=item.created_at,
                dict_id=item.id,
                metadata=_dict_metadata(item),
            )
            for item in listed(self.world.dicts, request.environment_name)
        ]
        return api_pb2.DictListResponse(dicts=items, environment_name=request.environment_name)

    async def dict_update(self, request: api_pb2.DictUpdateRequest) -> api_pb2.DictUpdateResponse:
        """`created`: something was written; with `if_not_exists` that is what tells the winner of a claim."""
        values = self.world.dicts[request.dict_id].values
        wanted = {
            e.key: e.value
            for e in request.updates
            if not (request.if_not_exists and e.key in values)
        }
        values.update(wanted)
        return api_pb2.DictUpdateResponse(created=bool(wanted))

    async def dict_get(self, request: api_pb2.DictGetRequest) -> api_pb2.DictGetResponse:
        value = self.world.dicts[request.dict_id].values.get(request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def dict_pop(self, request: api_pb2.DictPopRequest) -> api_pb2.DictPopResponse:
        value = self.world.dicts[request.dict_id].values.pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def dict_contains(
        self, request: api_pb2.DictContainsRequest
    ) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(
            found=request.key in self.world.dicts[request.dict_id].values
        )

    async def dict_len(self, request: api_pb2.DictLenRequest) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse(len=len(self.world.dicts[request.dict_id].values))

    async def dict_contents(
        self, request: api_pb2.DictContentsRequest
    ) -> AsyncIterator[api_pb2.DictEntry]:
        for key, value in list(self.world.dicts[request.dict_id].values.items()):
            yield api_pb2.DictEntry(key=key, value=value)

    async def dict_clear(self, request: api_pb2.DictClearRequest) -> Empty:
        self.world.dicts[request.dict_id].values.clear()
        return Empty()

    async def dict_delete(self, request: api_pb2.DictDeleteRequest) -> Empty:
        del self.world.dicts[request.dict_id]
        return Empty()

    async def dict_heartbeat(self, request: api_pb2.DictHeartbeatRequest) -> Empty:
        return Empty()


def _dict_metadata(item: Named) -> api_pb2.DictMetadata:
    return api_pb2.DictMetadata(name=item.name, creation_info=created(item))


class Queues:
    """Partitions, no expiry, no limit."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.changed = asyncio.Condition()

    def _partition(self, queue: str, key: bytes) -> deque[bytes]:
        return self.world.queues[queue].values.setdefault(key, deque())

    async def queue_get_or_create(
        self, request: api_pb2.QueueGetOrCreateRequest
    ) -> api_pb2.QueueGetOrCreateResponse:
        item, _ = self.world.get_or_create(self.world.queues, "qu", request)
        metadata = api_pb2.QueueMetadata(name=item.name, creation_info=created(item))
        return api_pb2.QueueGetOrCreateResponse(queue_id=item.id, metadata=metadata)

    async def queue_put(self, request: api_pb2.QueuePutRequest) -> Empty:
        self._partition(request.queue_id, request.partition_key).extend(request.values)
        async with self.changed:
            self.changed.notify_all()
        return Empty()

    async def queue_get(self, request: api_pb2.QueueGetRequest) -> api_pb2.QueueGetResponse:
        partition = self._partition(request.queue_id, request.partition_key)
        try:
            async with asyncio.timeout(request.timeout), self.changed:
                await self.changed.wait_for(lambda: partition)
        except TimeoutError:
            pass
        count = min(request.n_values or 1, len(partition))
        return api_pb2.QueueGetResponse(values=[partition.popleft() for _ in range(count)])

    async def queue_len(self, request: api_pb2.QueueLenRequest) -> api_pb2.QueueLenResponse:
        parts = self.world.queues[request.queue_id].values
        if request.total:
            return api_pb2.QueueLenResponse(len=sum(len(part) for part in parts.values()))
        return api_pb2.QueueLenResponse(
            len=len(self._partition(request.queue_id, request.partition_key))
        )

    async def queue_clear(self, request: api_pb2.QueueClearRequest) -> Empty:
        if request.all_partitions:
            self.world.queues[request.queue_id].values.clear()
        else:
            self._partition(request.queue_id, request.partition_key).clear()
        return Empty()

    async def queue_delete(self, request: api_pb2.QueueDeleteRequest) -> Empty:
        del self.world.queues[request.queue_id]
        return Empty()

    async def queue_heartbeat(self, request: api_pb2.QueueHeartbeatRequest) -> Empty:
        return Empty()
