"""Starts the loopback control plane: `python tests/e2e/modal_server --state DIR`. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from admin import Admin
from aiohttp import web
from apps import Apps, Environments, Images, Sources
from blobs import Blobs
from calls import Calls, Functions
from containers import Containers, find_isolation
from edge import Edge, Recorder
from execs import Execs
from faults import Faults
from interpreter import Interpreter
from logs import Logs
from modal_proto import api_pb2
from scheduler import Scheduler
from state import World
from stores import Dicts, Queues, Secrets
from volumes import Volumes
from worker import Outfit, Worker

PR_SET_PDEATHSIG = 1
LARGEST_BODY = 1 << 30


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="modal_server", description="A loopback control plane of Modal, for tests."
    )
    parser.add_argument(
        "--state", type=Path, required=True, help="folder for requests.jsonl, files and volumes"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="of the gRPC service; 0 takes a free one"
    )
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="what containers run; has modal"
    )
    parser.add_argument(
        "--no-isolation",
        action="store_true",
        help="run containers in the file system of this machine",
    )
    parser.add_argument(
        "--reload-after-commit", action="store_true", help="clients reload a volume after a commit"
    )
    parser.add_argument(
        "--heartbeat-s", type=float, default=60.0, help="silence after which an ephemeral app stops"
    )
    parser.add_argument(
        "--die-with-parent", action="store_true", help="end when the process that started this ends"
    )
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    state: Path = arguments.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    world = World(state)
    isolation = [] if arguments.no_isolation else find_isolation(state / "probe")
    containers = Containers(
        world, Interpreter.find(arguments.python.absolute(), version("modal")), isolation
    )
    outfit = Outfit(world, containers)
    containers.prepare, containers.environment = outfit.prepare, outfit.environment
    scheduler = Scheduler(world, containers)
    execs = Execs(world, containers)
    faults, recorder, blobs, functions = Faults(), Recorder(world), Blobs(world), Functions(world)
    areas = [
        Environments(world),
        Apps(world, scheduler),
        Sources(world, blobs),
        Images(world, faults),
        Secrets(world),
        Dicts(world),
        Queues(world),
        Volumes(
            world, blobs, faults, containers, reload_after_commit=arguments.reload_after_commit
        ),
        functions,
        Calls(world, scheduler),
        Logs(world, scheduler),
        Worker(world, scheduler),
        execs,
        blobs,
    ]
    containers.edge = Edge(recorder, faults, areas)
    admin = Admin(world, recorder, faults, functions, scheduler, containers)
    web_runner = await _listen_http(world, [*blobs.routes(), *admin.routes()])
    server, port = await containers.edge.listen(None, arguments.port)
    commands = await execs.listen()
    silence = asyncio.ensure_future(scheduler.stop_silent_apps(arguments.heartbeat_s))
    ready = {
        "url": f"http://127.0.0.1:{port}",
        "admin": f"{world.http_url}/admin",
        "isolated": bool(isolation),
    }
    print(json.dumps(ready | {"pid": os.getpid()}), flush=True)
    await _until_signal()
    silence.cancel()
    await _end_containers(scheduler, containers)
    commands.close()
    server.close()
    await web_runner.cleanup()


async def _listen_http(world: World, routes: list[web.RouteDef]) -> web.AppRunner:
    app = web.Application(client_max_size=LARGEST_BODY)
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    world.http_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


async def _until_signal() -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()


async def _end_containers(scheduler: Scheduler, containers: Containers) -> None:
    for app in scheduler.world.apps.values():
        app.state = api_pb2.APP_STATE_STOPPED  # Nothing starts any more.
    for container in scheduler.alive():
        containers.kill(container)
    if scheduler.tasks:
        await asyncio.wait(scheduler.tasks, timeout=5)


def main() -> None:
    arguments = _arguments()
    if arguments.die_with_parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    asyncio.run(_serve(arguments))


if __name__ == "__main__":
    main()
