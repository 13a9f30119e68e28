"""An app of many small functions, as users write them, that the scenarios run."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import modal
from sample_helper import ANSWER, OwnError

CHECKPOINTS = "/vol/ck"

image = (
    modal.Image.debian_slim("3.11")
    .pip_install("torch==2.9.0")
    .env({"SAMPLE_SETTING": "two words"})
    .add_local_python_source("sample_helper")
)
volume = modal.Volume.from_name("checkpoints", create_if_missing=True, version=2)
claims = modal.Dict.from_name("claims", create_if_missing=True)
app = modal.App("sample", image=image, tags={"run": "r1"})


@app.function()
def add(x: int, y: int = 1) -> int:
    print(f"adding {x} and {y}", flush=True)
    print("a warning", file=sys.stderr, flush=True)
    return x + y


@app.function(secrets=[modal.Secret.from_dict({"SAMPLE_TOKEN": "hunter2hunter2"})])
def look(names: list[str]) -> dict[str, object]:
    environment = {name: os.environ.get(name) for name in names}
    root = sorted(p.name for p in Path("/root").iterdir() if p.name != "__pycache__")
    return {
        "environment": environment,
        "root": root,
        "answer": ANSWER,
        "host": "SAMPLE_HOST" in os.environ,
    }


@app.function()
def own_error() -> None:
    raise OwnError("on purpose")


@app.function()
def crash(code: int) -> None:
    os._exit(code)


@app.function(retries=modal.Retries(max_retries=3, initial_delay=0.0, backoff_coefficient=1.0))
def fail_twice(key: str) -> int:
    attempt = claims.get(key, 0) + 1
    claims[key] = attempt
    if attempt < 3:
        raise OwnError(f"attempt {attempt}")
    return attempt


@app.function(timeout=1)
def too_slow() -> None:
    time.sleep(30)


@app.function(timeout=60)
def nap(key: str, seconds: float = 30.0) -> str:
    claims[key] = "started"
    print("napping", flush=True)
    try:
        time.sleep(seconds)
    except BaseException as error:
        claims[key] = type(error).__name__
        raise
    return "rested"


@app.function(timeout=60)
def rest(seconds: float = 30.0) -> str:
    """As `nap`, but asks the service for nothing: a cancel that hits the client in a call of its own may be lost."""
    time.sleep(seconds)
    return "rested"


@app.function(volumes={CHECKPOINTS: volume}, timeout=120)
def train(run: str, steps: int, stop_at: int = -1) -> dict[str, object]:
    """Resumes from the last committed step; waits at `stop_at` in its first attempt."""
    status = Path(CHECKPOINTS, run, "step.json")
    status.parent.mkdir(parents=True, exist_ok=True)
    start = json.loads(status.read_text())["step"] if status.exists() else 0
    for step in range(start + 1, steps + 1):
        status.write_text(json.dumps({"step": step}))
        volume.commit()
        if step == stop_at and start == 0:
            claims[run] = "waits"
            time.sleep(60)
    return {"start": start, "end": steps}


@app.function(volumes={CHECKPOINTS: volume})
def write(name: str, text: str, *, commit: bool = True, hold_open: bool = False) -> str:
    path = Path(CHECKPOINTS, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        if commit:
            volume.commit()
        if hold_open:
            with path.open():
                volume.reload()
    except RuntimeError as error:
        return str(error)
    return "fine"


@app.function(volumes={CHECKPOINTS: volume})
def read(name: str, *, fresh: bool) -> str | None:
    if fresh:
        volume.reload()
    path = Path(CHECKPOINTS, name)
    return path.read_text() if path.exists() else None


@app.function()
def segment(run: str, number: int, last: int) -> str:
    """One of a chain: claims its successor once, spawns it by name, and ends."""
    if number < last and claims.put(f"{run}:{number + 1}", "claimed", skip_if_exists=True):
        following = modal.Function.from_name("sample", "segment").spawn(run, number + 1, last)
        claims[f"{run}:id:{number + 1}"] = following.object_id
    return f"segment {number}"


@app.function()
def call_another(x: int) -> int:
    return modal.Function.from_name("sample", "add").remote(x, 10)


@app.function(gpu=["H100", "A100-80GB:4"], retries=2, timeout=3600, cloud="aws", region="us-east")
def on_gpu() -> str:
    return "ran"


@app.function(gpu="H100:8")
@modal.clustered(size=2)
def cluster(fail_rank: int = -1) -> dict[str, object]:
    context = modal.Cluster.from_context()
    rank = context.container_rank()
    if rank == fail_rank:
        os._exit(3)
    return {"rank": rank, "ips": context.container_ips(), "ids": len(context.container_ids())}


@app.function()
def large(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


@app.local_entrypoint()
def main(x: int = 1) -> None:
    print("result", add.remote(x, 2))
