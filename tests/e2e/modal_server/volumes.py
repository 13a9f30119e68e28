"""Volumes, version 2: a published folder each, and a working copy of it in every container that mounts it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

from blobs import Blobs
from containers import Containers
from faults import Faults
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2
from state import CALLER, Named, WorkingCopy, World, not_found
from stores import created, listed

BLOCK = 8 << 20
OPEN_FILES = "there are open files preventing the operation"
FOLDER = (-1, -1, -1)
Index = dict[str, tuple[int, int, int]]


class Volumes:
    def __init__(
        self,
        world: World,
        blobs: Blobs,
        faults: Faults,
        containers: Containers,
        *,
        reload_after_commit: bool,
    ) -> None:
        self.world, self.blobs, self.faults, self.containers = world, blobs, faults, containers
        self.skip_reload = not reload_after_commit
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def volume_get_or_create(
        self, request: api_pb2.VolumeGetOrCreateRequest
    ) -> api_pb2.VolumeGetOrCreateResponse:
        if request.version == api_pb2.VOLUME_FS_VERSION_V1:
            raise GRPCError(
                Status.UNIMPLEMENTED, "the loopback control plane has volumes of version 2 only"
            )
        volume, _ = self.world.get_or_create(self.world.volumes, "vo", request)
        published(self.world, volume.id)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.id, version=api_pb2.VOLUME_FS_VERSION_V2, metadata=_metadata(volume)
        )

    async def volume_get_by_id(
        self, request: api_pb2.VolumeGetByIdRequest
    ) -> api_pb2.VolumeGetByIdResponse:
        volume = self.world.volumes[request.volume_id]
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.id, metadata=_metadata(volume))

    async def volume_list(self, request: api_pb2.VolumeListRequest) -> api_pb2.VolumeListResponse:
        items = [
            api_pb2.VolumeListItem(
                label=volume.name,
                volume_id=volume.id,
                created_at=volume.created_at,
                metadata=_metadata(volume),
            )
            for volume in listed(self.world.volumes, request.environment_name)
        ]
        return api_pb2.VolumeListResponse(items=items, environment_name=request.environment_name)

    async def volume_delete(self, request: api_pb2.VolumeDeleteRequest) -> Empty:
        del self.world.volumes[request.volume_id]
        return Empty()

    async def volume_heartbeat(self, request: api_pb2.VolumeHeartbeatRequest) -> Empty:
        return Empty()

    async def volume_list_files2(
        self, request: api_pb2.VolumeListFiles2Request
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        root, path = self._locate(request.volume_id, request.path)
        if not os.path.lexists(path):
            raise not_found(f"path {request.path!r}")
        found = (
            [path]
            if not path.is_dir()
            else sorted(path.rglob("*") if request.recursive else path.iterdir())
        )
        if request.HasField("max_entries"):
            found = found[: request.max_entries]
        yield api_pb2.VolumeListFiles2Response(entries=[_entry(root, item) for item in found])

    async def volume_get_file2(
        self, request: api_pb2.VolumeGetFile2Request
    ) -> api_pb2.VolumeGetFile2Response:
        _, path = self._locate(request.volume_id, request.path)
        if not path.is_file():
            raise not_found(f"file {request.path!r}")
        # A link: whoever reads block by block gets one version, also if a commit replaces the file meanwhile.
        url, size = self.blobs.link(path), path.stat().st_size
        length = min(request.len or size, size - request.start)
        starts = range(request.start, request.start + length, BLOCK)
        urls = [f"{url}?start={at}&len={min(BLOCK, request.start + length - at)}" for at in starts]
        return api_pb2.VolumeGetFile2Response(
            get_urls=urls, size=size, start=request.start, len=length
        )

    async def volume_put_files2(
        self, request: api_pb2.VolumePutFiles2Request
    ) -> api_pb2.VolumePutFiles2Response:
        """Names the blocks that are missing; with none missing, writes the files, each at once."""
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(
                file_index=i,
                block_index=j,
                put_url=self.blobs.block_url(block.contents_sha256.hex()),
            )
            for i, file in enumerate(request.files)
            for j, block in enumerate(file.blocks)
            if not self.blobs.block_path(block.contents_sha256.hex()).exists()
        ]
        if missing:
            return api_pb2.VolumePutFiles2Response(missing_blocks=missing)
        targets = [self._locate(request.volume_id, file.path)[1] for file in request.files]
        taken = [
            file.path for file, path in zip(request.files, targets, strict=True) if path.exists()
        ]
        if taken and request.disallow_overwrite_existing_files:
            raise GRPCError(Status.ALREADY_EXISTS, f"exists already: {', '.join(taken)}")
        for file, path in zip(request.files, targets, strict=True):
            await asyncio.to_thread(self._assemble, file, path)
        return api_pb2.VolumePutFiles2Response()

    def _assemble(self, file: api_pb2.VolumePutFiles2Request.File, path: Path) -> None:
        part = self.world.path("incoming", hashlib.sha256(str(path).encode()).hexdigest())
        with part.open("wb") as target:
            for index, block in enumerate(file.blocks):
                content = self.blobs.block_path(block.contents_sha256.hex()).read_bytes()
                # Blocks travel without their trailing zeros.
                target.write(content.ljust(min(BLOCK, file.size - index * BLOCK), b"\0"))
        part.chmod(file.mode & 0o777 or 0o644)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)

    async def volume_remove_file2(self, request: api_pb2.VolumeRemoveFile2Request) -> Empty:
        _, path = self._locate(request.volume_id, request.path)
        if not os.path.lexists(path):
            raise not_found(f"path {request.path!r}")
        if not path.is_dir():
            path.unlink()
        elif request.recursive:
            shutil.rmtree(path)
        else:
            raise GRPCError(
                Status.INVALID_ARGUMENT, f"{request.path!r} is a folder: remove it recursively"
            )
        return Empty()

    async def volume_commit(
        self, request: api_pb2.VolumeCommitRequest
    ) -> api_pb2.VolumeCommitResponse:
        self.faults.before_commit(self.world.volumes[request.volume_id].name)
        copy = _mounted(request.volume_id)
        if not copy.read_only:
            async with self.locks[request.volume_id]:
                await asyncio.to_thread(commit, copy, self.world.path("incoming", "commit"))
        return api_pb2.VolumeCommitResponse(skip_reload=self.skip_reload)

    async def volume_reload(self, request: api_pb2.VolumeReloadRequest) -> Empty:
        copy = _mounted(request.volume_id)
        container = CALLER.get()
        assert container is not None
        if self.containers.has_open(container, copy.path):
            raise GRPCError(Status.FAILED_PRECONDITION, OPEN_FILES)
        async with self.locks[request.volume_id]:
            await asyncio.to_thread(reload, copy)
        return Empty()

    def _locate(self, volume_id: str, path: str) -> tuple[Path, Path]:
        if volume_id not in self.world.volumes:
            raise not_found(f"volume {volume_id}")
        root = published(self.world, volume_id)
        parts = [part for part in PurePosixPath(path).parts if part not in {"/", "."}]
        if ".." in parts:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{path!r} leaves the volume")
        return root, root.joinpath(*parts)


def published(world: World, volume_id: str) -> Path:
    path = world.path("volumes", volume_id)
    path.mkdir(exist_ok=True)
    return path


def _metadata(volume: Named) -> api_pb2.VolumeMetadata:
    return api_pb2.VolumeMetadata(
        version=api_pb2.VOLUME_FS_VERSION_V2, name=volume.name, creation_info=created(volume)
    )


def _entry(root: Path, path: Path) -> api_pb2.FileEntry:
    kinds = api_pb2.FileEntry
    kind = kinds.SYMLINK if path.is_symlink() else kinds.DIRECTORY if path.is_dir() else kinds.FILE
    status = path.lstat()
    size = 0 if kind == kinds.DIRECTORY else status.st_size
    name = path.relative_to(root).as_posix()
    return api_pb2.FileEntry(path=name, type=kind, mtime=int(status.st_mtime), size=size)


def _mounted(volume_id: str) -> WorkingCopy:
    container = CALLER.get()
    if container is None or volume_id not in container.mounts:
        raise GRPCError(
            Status.FAILED_PRECONDITION, "only a container that mounts the volume can do this"
        )
    return container.mounts[volume_id]


# Working copies.


def fill(copy: WorkingCopy) -> None:
    """Make the working copy as the published folder is now."""
    copy.published.mkdir(parents=True, exist_ok=True)
    shutil.copytree(copy.published, copy.path, symlinks=True, dirs_exist_ok=True)
    copy.base = index(copy.path)


def commit(copy: WorkingCopy, part: Path) -> None:
    """Publish what changed here since the last step. Whoever commits a file last wins."""
    now = index(copy.path)
    for name in sorted(now):
        if now[name] == copy.base.get(name):
            continue
        target = copy.published / name
        if now[name] == FOLDER:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(copy.path / name, part, follow_symlinks=False)
            part.replace(target)
    for name in sorted(set(copy.base) - set(now), reverse=True):
        _remove(copy.published / name)
    copy.base = now


def reload(copy: WorkingCopy) -> None:
    """Bring in what others published. What changed here and is not committed stays as it is here."""
    now, theirs = index(copy.path), index(copy.published)
    mine = {name for name in now if now[name] != copy.base.get(name)}
    for name in sorted(theirs):
        same = name in now and now[name][:2] == theirs[name][:2]
        if name in mine or same:
            continue
        target = copy.path / name
        if theirs[name] == FOLDER:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy2(copy.published / name, target, follow_symlinks=False)
    for name in sorted(set(now) - set(theirs) - mine, reverse=True):
        _remove(copy.path / name)
    after = index(copy.path)
    copy.base = {name: seen for name, seen in after.items() if name not in mine}


def index(root: Path) -> Index:
    """What tells that a path changed: size, time and inode."""
    seen: Index = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            seen[(Path(folder) / name).relative_to(root).as_posix()] = FOLDER
        for name in files:
            path = Path(folder) / name
            status = path.lstat()
            seen[path.relative_to(root).as_posix()] = (
                status.st_size,
                status.st_mtime_ns,
                status.st_ino,
            )
    return seen


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        if not any(path.iterdir()):  # Others may have put something there.
            path.rmdir()
    else:
        path.unlink(missing_ok=True)
