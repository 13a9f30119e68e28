"""Nodes share no folder: what ranks of other nodes wrote of a checkpoint is brought to node 0, which publishes it.

Today that is little: the state of the random numbers of each rank, a few kilobytes. So a node's files go as one piece,
held in memory, over the group that also agrees. A writer of shards replaces `bring_together` (each node would carry its
gigabytes to the medium itself, and node 0 only publish the manifest); nobody else knows how the files travel.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

from ft.runtime.world import World


def bring_together(staged: Path, world: World) -> OSError | None:
    """Below `staged` on node 0 lie the files of all nodes afterwards, elsewhere nothing. Collective.

    Every node has a folder `staged` of its own, complete on all of its ranks. Returns what this rank's medium did not
    allow. Raises: RuntimeError on rank 0 if two nodes wrote the same file.
    """
    error = None
    for rank in world.first_ranks[1:]:
        if world.is_main:
            error = _unpack(world.receive(rank), staged) or error
        elif world.rank == rank:
            packed, error = _pack(staged)
            world.send_to_main(packed)
            shutil.rmtree(staged, ignore_errors=True)
    return error


def _pack(folder: Path) -> tuple[bytes, OSError | None]:
    """All files below `folder` as one archive; nothing, if one cannot be read."""
    stream = io.BytesIO()
    try:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.add(path, path.relative_to(folder).as_posix())
    except OSError as error:
        return b"", error
    return stream.getvalue(), None


def _unpack(packed: bytes, folder: Path) -> OSError | None:
    if not packed:
        return None  # Its node says why.
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        twice = [name for name in archive.getnames() if (folder / name).exists()]
        if twice:
            raise RuntimeError(f"two nodes wrote the same file of a checkpoint: {', '.join(twice)}")
        try:
            archive.extractall(folder, filter="data")
        except OSError as error:
            return error
    return None
