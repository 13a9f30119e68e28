"""`make e2e-image`, first step: install what builds and runs containers, or say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from container_lab import missing

needed = missing()
if needed:
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "-qq"]
    if os.geteuid() != 0:
        sys.exit(f"missing: {' '.join(needed)}. As root: apt-get install {' '.join(needed)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*apt, "update"], check=True, env=env)
    subprocess.run([*apt, "install", "-y", "--no-install-recommends", *needed], check=True, env=env)
