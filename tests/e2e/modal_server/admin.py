"""The HTTP side for tests: what was asked, what is going on, which GPU is given, what goes wrong."""

from __future__ import annotations

import hashlib
from typing import Any

from aiohttp import web
from calls import Functions
from containers import Containers
from edge import Recorder
from faults import Faults
from scheduler import Scheduler
from state import Call, Container, Unit, World

PREEMPT_GRACE_S = 30.0
STRIKES = {"preempt", "timeout", "crash", "lose_machine"}


class Admin:
    def __init__(
        self,
        world: World,
        recorder: Recorder,
        faults: Faults,
        functions: Functions,
        scheduler: Scheduler,
        containers: Containers,
    ) -> None:
        self.world, self.recorder, self.faults, self.functions = world, recorder, faults, functions
        self.scheduler, self.containers = scheduler, containers

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/admin/requests", self.requests),
            web.get("/admin/state", self.state),
            web.get("/admin/objects", self.objects),
            web.post("/admin/fault", self.fault),
            web.post("/admin/grant", self.grant),
        ]

    async def requests(self, request: web.Request) -> web.Response:
        """The recorded requests, of one RPC with `?rpc=NAME`."""
        rpc = request.query.get("rpc")
        return web.json_response(
            [line for line in self.recorder.lines if rpc in {None, line["rpc"]}]
        )

    async def state(self, request: web.Request) -> web.Response:
        world = self.world
        apps = [
            {
                "id": a.id,
                "name": a.name or a.description,
                "state": a.state,
                "tags": a.tags,
                "version": a.version,
            }
            for a in world.apps.values()
        ]
        calls = [self._call(call) for call in world.calls.values()]
        containers = [self._container(container) for container in world.containers.values()]
        return web.json_response({"apps": apps, "calls": calls, "containers": containers})

    def _call(self, call: Call) -> dict[str, Any]:
        inputs = [
            {
                "id": item.id,
                "state": item.state,
                "attempts": item.attempts,
                "retry_count": item.retry_count,
                "restarts": item.restarts,
                "containers": [c.id for c in item.unit.containers] if item.unit else [],
            }
            for item in call.inputs
        ]
        function = call.function
        app_id = function.app.id
        return {
            "id": call.id,
            "app": app_id,
            "function": function.name,
            "parent": call.parent_input,
            "inputs": inputs,
        }

    def _container(self, container: Container) -> dict[str, Any]:
        return {
            "id": container.id,
            "function": container.unit.function.name,
            "rank": container.rank,
            "pid": self.containers.main_pid(container),
            "gpu": container.gpu,
            "alive": not container.finished_at,
            "exit_code": container.exit_code,
            "lost": container.unit.lost,
            "inputs": [item.id for item in container.holds],
        }

    async def objects(self, request: web.Request) -> web.Response:
        """What a function names by id. Of a secret's values only what tells whether they are the expected ones."""
        world = self.world
        images = {
            image.id: {
                "bases": [base.image_id for base in image.definition.base_images],
                "commands": list(image.definition.dockerfile_commands),
            }
            for image in world.images.values()
        }
        secrets = {
            secret.id: {
                "name": secret.name,
                "sha256": {
                    key: hashlib.sha256(value.encode()).hexdigest()
                    for key, value in secret.values.items()
                },
            }
            for secret in world.secrets.values()
        }
        volumes = {volume.id: volume.name for volume in world.volumes.values()}
        return web.json_response({"images": images, "secrets": secrets, "volumes": volumes})

    async def grant(self, request: web.Request) -> web.Response:
        """`{"gpu": "A100-80GB", "function": "train"}`: what functions created from now on get of their list."""
        body = await request.json()
        self.functions.grants[body.get("function", "*")] = body["gpu"]
        return web.json_response({})

    async def fault(self, request: web.Request) -> web.Response:
        """See README.md. 409 if nothing runs that could be struck, 400 if the order makes no sense."""
        body = await request.json()
        kind = body.pop("kind", "")
        try:
            if kind in STRIKES:
                struck = self._strike(kind, **body)
                return web.json_response({"containers": struck}, status=200 if struck else 409)
            target = body.pop("rpc", None) or body.pop("volume", None) or body.pop("match", "")
            self.faults.arm(kind, target, **body)
        except (TypeError, ValueError, KeyError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({})

    def _strike(
        self,
        kind: str,
        call: str | None = None,
        container: str | None = None,
        grace_s: float = PREEMPT_GRACE_S,
        group: bool = False,
    ) -> list[str]:
        units = self._running(call, container)
        struck = [c.id for unit in units for c in unit.containers]
        for unit in units:
            if kind == "preempt":
                self.scheduler.interrupt(unit, "preempted", grace_s, group=group)
            elif kind == "lose_machine":
                self.scheduler.lose(unit, "the machine was lost")
            elif kind == "timeout":
                for item in list(unit.running):
                    self.scheduler.time_out(item)
            else:
                for victim in unit.containers:
                    self.containers.kill(victim)
        return struck

    def _running(self, call: str | None, container: str | None) -> list[Unit]:
        """The units with a running input of this call, or with this container."""
        if container is not None:
            found = self.world.containers[container]
            return [] if found.finished_at else [found.unit]
        items = self.world.calls[call].inputs if call else []
        return list({id(item.unit): item.unit for item in items if item.unit is not None}.values())
