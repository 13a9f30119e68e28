"""What the tests of the backend need of the project's own environment, which has torch and moto: run by its Python.

`serve FOLDER`: a tiny model and data into FOLDER, then an S3 server until standard input ends; prints its variables as
JSON. `environment RECIPE ROOT`: what `setup` would install for the recipe, made of the project's own packages.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIGITS = 16


def serve(folder: Path) -> None:
    import boto3
    from laptop import make_data, make_tiny_model
    from object_store import ObjectStore

    make_tiny_model(folder / "tiny")
    make_data(folder)
    store = ObjectStore()

    client = boto3.client(
        "s3",
        endpoint_url=store.url,
        aws_access_key_id="a-key",
        aws_secret_access_key="-",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket-one")
    print(json.dumps(store.environment), flush=True)
    sys.stdin.read()
    store.stop()


def environment(recipe: str, root: Path) -> None:
    """The venv of the image is one that finds the project's packages; all else the setup script makes itself."""
    import torch

    from ft.images import bundle, setup
    from ft.launcher import dispatch

    spec = dispatch.prepare(recipe, backend="sky").image
    assert spec is not None
    venv = root / f"python-{spec.environment_hash[:DIGITS]}"
    if not (venv / ".finished").exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        (site,) = venv.glob("lib/python3*/site-packages")
        (site / "project.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        (venv / ".finished").touch()
    source = root / f"source-{spec.source_sha256[:DIGITS]}"
    if not source.exists():
        with tarfile.open(fileobj=io.BytesIO(bundle.bundle_bytes())) as tar:
            tar.extractall(source, filter="data")
    script, clean = setup.setup_script(spec), {"PATH": "/usr/bin:/bin", "HOME": str(root)}
    subprocess.run(["sh", "-c", script], env={**clean, "FT_SETUP_ROOT": str(root)}, check=True)
    # Jobs run as another user.
    subprocess.run(["chmod", "-R", "a+rX", str(root)], check=True)


if __name__ == "__main__":
    sys.path[:0] = map(str, (HERE.parent, HERE.parents[1]))
    match sys.argv[1:]:
        case ["serve", folder]:
            serve(Path(folder))
        case ["environment", recipe, root]:
            environment(recipe, Path(root))
        case _:
            raise SystemExit(__doc__)
