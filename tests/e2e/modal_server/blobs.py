"""Bytes over HTTP: blobs (large arguments and results), blocks of volume uploads, and files of volumes to read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from aiohttp import web
from modal_proto import api_pb2
from state import World, new_id

CHUNK = 1 << 20


class Blobs:
    """`world.http_url` must be set before the first URL is made."""

    def __init__(self, world: World) -> None:
        self.world = world

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put("/blob/{name}", self.put_blob),
            web.get("/blob/{name}", self.get_blob),
            web.put("/block/{name}", self.put_block),
            web.get("/file/{name}", self.get_file),
        ]

    def path(self, blob_id: str) -> Path:
        return self.world.path("blobs", blob_id)

    def block_path(self, sha256_hex: str) -> Path:
        return self.world.path("blocks", sha256_hex)

    def block_url(self, sha256_hex: str) -> str:
        return f"{self.world.http_url}/block/{sha256_hex}"

    def link(self, path: Path) -> str:
        """A URL that reads this version of the file, whatever takes its place."""
        name = new_id("fi")
        os.link(path, self.world.path("links", name))
        return f"{self.world.http_url}/file/{name}"

    async def blob_create(self, request: api_pb2.BlobCreateRequest) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        url = f"{self.world.http_url}/blob/{blob_id}"
        return api_pb2.BlobCreateResponse(
            blob_id=blob_id, blob_ids=[blob_id], upload_urls=api_pb2.UploadUrlList(items=[url])
        )

    async def blob_get(self, request: api_pb2.BlobGetRequest) -> api_pb2.BlobGetResponse:
        if not self.path(request.blob_id).exists():
            raise KeyError(request.blob_id)
        return api_pb2.BlobGetResponse(download_url=f"{self.world.http_url}/blob/{request.blob_id}")

    async def put_blob(self, request: web.Request) -> web.Response:
        """The client compares the ETag with the MD5 that it computed, as S3 answers it."""
        target = self.path(request.match_info["name"])
        digest = hashlib.md5(usedforsecurity=False)
        with target.open("wb") as file:
            async for chunk in request.content.iter_chunked(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        return web.Response(headers={"ETag": f'"{digest.hexdigest()}"'})

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(self.path(request.match_info["name"]))

    async def put_block(self, request: web.Request) -> web.Response:
        """Kept without trailing zeros; its name is the hash of that. The reply is what the client must show again."""
        name, content = request.match_info["name"], (await request.read()).rstrip(b"\0")
        if hashlib.sha256(content).hexdigest() != name:
            return web.Response(status=400, text="the block is not what its hash says")
        self.block_path(name).write_bytes(content)
        return web.Response(text=name)

    async def get_file(self, request: web.Request) -> web.Response:
        start, length = int(request.query["start"]), int(request.query["len"])
        with self.world.path("links", request.match_info["name"]).open("rb") as file:
            file.seek(start)
            return web.Response(body=file.read(length))
