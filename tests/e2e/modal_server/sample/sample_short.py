"""An app with one function that asks for much: what a test reads in the request of the client."""

import time

import modal

app = modal.App("short", tags={"run": "r7"})


@app.function(
    gpu="h100:2",
    timeout=7200,
    retries=modal.Retries(max_retries=5, initial_delay=2.0, max_delay=30.0),
    volumes={"/data": modal.Volume.from_name("some-volume", create_if_missing=True, version=2)},
    cloud="gcp",
    region="eu",
)
def add(x: int, y: int, seconds: float = 0.0) -> int:
    print("napping", flush=True)
    time.sleep(seconds)
    return x + y
