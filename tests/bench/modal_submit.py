"""What `ft cloud run --backend modal --detach` takes beside a bare `modal run --detach` of an equal app.

python tests/bench/modal_submit.py [--rounds 11] [--round-trip-ms 50]

Both talk to one loopback control plane of Modal (tests/e2e/modal_server). The bare app is made of ft's own request: the
same image layers, folders of source, volumes and two functions with the same options, of which it spawns one; its
functions do nothing. Each row is a whole process. All rows take turns, and what a process has started is stopped, its
containers too, before the next one begins. `uploads` is a part of ft's time, measured in it: sending plan and inputs,
which are tiny here.

A bare client follows the app's logs and, detached or not, waits at its end until the app is done, 10 s at most: it was
told MODAL_LOGS_TIMEOUT=0 in the row `no logs`. Ratios are of medians, to that row.

With --round-trip-ms the server answers clients that much later: loopback has no distance.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import queue
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ft

HARNESS = Path(__file__).resolve().parents[1] / "e2e" / "modal_server" / "harness.py"
PYTHON, MODAL, DRY = "python -c pass", "import modal", "ft cloud run --dry-run"
LINGERS, BARE = "modal run --detach", "modal run --detach, no logs"
FT = "ft cloud run --detach"
UPLOADS, BEYOND = "uploads", "ft without uploads"
STOP_S = 60.0

RECIPE = {
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "micro_batch_size": 2,
    "max_steps": 2,
    "learning_rate": 0.001,
    "output_dir": "out",
    "cloud": {"gpu": "cpu", "backend": "modal"},
}

BARE_APP = """
import json
from pathlib import Path

import modal

request = json.loads(Path(__file__).with_name("request.json").read_text()) if modal.is_local() else {}


def image():
    made = modal.Image.from_registry(request["image"]["base"]).entrypoint([])
    for layer in request["image"]["layers"]:
        made = made.dockerfile_commands(layer)
    for room, folder in request["rooms"].items():
        made = made.add_local_dir(
            folder, "/opt/ft-source/ft/" + room, ignore=lambda path: "__pycache__" in path.parts
        )
    return made


def options(name):
    if not request:
        return {}
    values = request["functions"][name]
    retries = modal.Retries(**values["retries"])
    return values | {"retries": retries, "image": everywhere, "volumes": volumes}


everywhere = image() if request else None
volumes = {
    path: modal.Volume.from_name(volume["name"], create_if_missing=True, version=2)
    for path, volume in request.get("volumes", {}).items()
}
app = modal.App("bare", tags=request.get("tags"))


@app.function(**options("prepare"))
def prepare(job):
    return job


@app.function(**options("train"))
def train(job):
    return job


@app.local_entrypoint()
def main():
    print(prepare.spawn(request["job"]).object_id)
"""

# `ft` itself, which leaves behind how long its uploads took. Nothing is imported that it would not import.
TIMED_FT = """
import contextlib, pathlib, time
from ft.launcher.backends.modal_store import RunFolder
from ft.launcher.cli.app import main


def timed(self, *arguments, **options):
    import modal

    real = vars(modal.Volume)["batch_upload"]

    @contextlib.contextmanager
    def batch_upload(volume, **options):
        began = time.perf_counter()
        with real.__get__(volume)(**options) as batch:
            yield batch
        pathlib.Path("uploads").write_text(str(time.perf_counter() - began))

    modal.Volume.batch_upload = batch_upload
    upload(self, *arguments, **options)


upload, RunFolder.upload = RunFolder.upload, timed
main()
"""


class Distance:
    """A port of the server's where everything arrives late: what comes back, by `seconds`."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port, self.seconds = port, seconds
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(("127.0.0.1", self.port))
            for one, other, late_s in ((near, far, 0.0), (far, near, self.seconds)):
                other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                way: queue.Queue[tuple[float, bytes]] = queue.Queue()
                for work in (self._take, self._give):
                    arguments = (one if work == self._take else other, way, late_s)
                    threading.Thread(target=work, args=arguments, daemon=True).start()

    @staticmethod
    def _take(one: socket.socket, way: queue.Queue[tuple[float, bytes]], late_s: float) -> None:
        packet = b"-"
        while packet:
            packet = b""
            with contextlib.suppress(OSError):
                packet = one.recv(1 << 16)
            way.put((time.monotonic() + late_s, packet))

    @staticmethod
    def _give(other: socket.socket, way: queue.Queue[tuple[float, bytes]], late_s: float) -> None:
        del late_s
        with contextlib.suppress(OSError):
            while True:
                due, packet = way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not packet:
                    other.shutdown(socket.SHUT_WR)
                    return
                other.sendall(packet)


class Bench:
    """A server, a recipe, and an app that is equal to what ft makes of it."""

    def __init__(self, folder: Path, server: Any, url: str) -> None:
        self.folder, self.server = folder, server
        self.stopped: set[str] = set()
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "FT_"))}
        keep.pop("PYTHONDONTWRITEBYTECODE", None)
        kinds = ("STATE", "DATA", "CACHE", "CONFIG")
        homes = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in kinds}
        plain = {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONPYCACHEPREFIX": str(folder / "pyc")}
        self.env = keep | homes | plain | server.environment | {"MODAL_SERVER_URL": url}
        turns = [{"role": role, "content": "one"} for role in ("user", "assistant")]
        (folder / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
        (folder / "recipe.yml").write_text(json.dumps(RECIPE))
        self._write_bare_app()

    def _write_bare_app(self) -> None:
        request = json.loads(self.run(DRY).replace("{run}", "bare"))["request"]
        folders = [room for root in ft.__path__ for room in Path(root).iterdir() if room.is_dir()]
        request["rooms"] = {room.name: str(room) for room in folders if room.name != "__pycache__"}
        (self.folder / "request.json").write_text(json.dumps(request))
        (self.folder / "bare_app.py").write_text(BARE_APP)

    def run(self, name: str) -> str:
        """What it prints. Raises: SystemExit with what it said if it fails."""
        words = {
            PYTHON: ["-c", "pass"],
            MODAL: ["-c", "import modal"],
            DRY: ["-c", TIMED_FT, "cloud", "run", "recipe.yml", "--dry-run"],
            LINGERS: ["-m", "modal", "run", "--detach", "bare_app.py"],
            BARE: ["-m", "modal", "run", "--detach", "bare_app.py"],
            FT: ["-c", TIMED_FT, "cloud", "run", "recipe.yml", "--yes", "--detach"],
        }[name]
        command = [sys.executable, *words]
        env = self.env | ({"MODAL_LOGS_TIMEOUT": "0"} if name == BARE else {})
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}{done.stdout}")
        return done.stdout

    def measured(self, name: str) -> tuple[float, float, int]:
        """Seconds that a process takes, of the clock and of the processor, and what it asks the server."""
        asked = self.questions()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        self.run(name)
        wall_s = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return wall_s, cpu_s, self.questions() - asked

    def questions(self) -> int:
        """What clients have asked so far; a heartbeat is no question."""
        path = self.server.state_folder / "requests.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        asked = [json.loads(line) for line in lines]
        return sum(not line["container"] and "Heartbeat" not in line["rpc"] for line in asked)

    def clear(self) -> None:
        """Stop all apps, and wait until nothing works for them any more."""
        for app in self.server.state()["apps"]:
            if app["id"] not in self.stopped:
                self.stopped.add(app["id"])
                self.server.modal("app", "stop", app["id"], "--yes")
        until = time.monotonic() + STOP_S
        while any(container["alive"] for container in self.server.state()["containers"]):
            if time.monotonic() > until:
                raise SystemExit(f"containers go on {STOP_S:g} s after they were stopped")
            time.sleep(0.1)


def started(folder: Path) -> Any:
    """The server."""
    spec = importlib.util.spec_from_file_location("modal_server_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    harness = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = harness  # A dataclass looks for its module there.
    spec.loader.exec_module(harness)
    return harness.Loopback.start(folder / "state")


def measure(bench: Bench, rounds: int) -> dict[str, list[tuple[float, float, int]]]:
    found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for turn in range(rounds + 1):
        names = [PYTHON, MODAL, DRY, LINGERS, BARE, FT]
        for name in names if turn % 2 else reversed(names):
            taken = bench.measured(name)
            bench.clear()
            if not turn:  # The first one writes bytecode, builds the image and uploads the source.
                continue
            found[name].append(taken)
            if name == FT:
                uploads_s = float((bench.folder / "uploads").read_text())
                found[UPLOADS].append((uploads_s, 0.0, 0))
                found[BEYOND].append((taken[0] - uploads_s, 0.0, 0))
    return found


def show(found: dict[str, list[tuple[float, float, int]]]) -> None:
    bare_s, bare_cpu_s, _ = (statistics.median(values) for values in zip(*found[BARE], strict=True))
    print("| process | min s | median s | max s | of bare | processor s | of bare | requests |")
    print("|---|---|---|---|---|---|---|---|")
    for name in (PYTHON, MODAL, DRY, LINGERS, BARE, FT, UPLOADS, BEYOND):
        walls, cpus, asked = zip(*found[name], strict=True)
        wall_s, cpu_s = statistics.median(walls), statistics.median(cpus)
        cells = [f"{value:.3f}" for value in (min(walls), wall_s, max(walls))]
        cells.append(f"{wall_s / bare_s:.2f}")
        cells += [f"{cpu_s:.3f}", f"{cpu_s / bare_cpu_s:.2f}"] if cpu_s else ["", ""]
        cells.append(f"{statistics.median(asked):.0f}" if any(asked) else "")
        print(f"| {name} | {' | '.join(cells)} |")
    pairs = [one[0] / other[0] for one, other in zip(found[BEYOND], found[BARE], strict=True)]
    quarters = statistics.quantiles(pairs, n=4)
    print(
        f"\nOf {len(pairs)} pairs, ft without uploads to bare: median {statistics.median(pairs):.2f}, "
        f"middle half {quarters[0]:.2f} to {quarters[2]:.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--round-trip-ms", type=float, default=0.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = started(folder)
        try:
            url = server.ready["url"]
            if arguments.round_trip_ms:
                port = int(url.rpartition(":")[2])
                url = Distance(port, arguments.round_trip_ms / 1000).url
            show(measure(Bench(folder, server, url), arguments.rounds))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
