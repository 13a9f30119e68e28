"""The Python environment of every image: an interpreter of this machine, with modal installed."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

BASE, VENV = "/opt/python", "/opt/venv"
FACTS = """
import json, sys, sysconfig, modal
from importlib.metadata import version
print(json.dumps({"prefix": sys.prefix, "base": sys.base_prefix, "modal": version("modal"),
    "name": f"python{sys.version_info[0]}.{sys.version_info[1]}", "site": sysconfig.get_path("purelib")}))
"""


@dataclass(frozen=True)
class Interpreter:
    """`executable` here, `inside` in an isolated container, where its parts lie under /opt: /root must stay empty."""

    executable: Path
    prefix: Path
    base: Path
    site: Path
    name: str

    @staticmethod
    def find(executable: Path, modal_version: str) -> Interpreter:
        """Raises: SystemExit if the interpreter has not modal in the version of the server."""
        reply = subprocess.run(
            [executable, "-c", FACTS], capture_output=True, text=True, check=False
        )
        if reply.returncode:
            raise SystemExit(
                f"{executable} cannot import modal, which containers need:\n{reply.stderr[-1000:]}"
            )
        facts = json.loads(reply.stdout)
        if facts["modal"] != modal_version:
            raise SystemExit(f"{executable} has modal {facts['modal']}, the server {modal_version}")
        paths = (Path(facts[key]) for key in ("prefix", "base", "site"))
        return Interpreter(executable, *paths, facts["name"])

    @property
    def inside(self) -> str:
        if self.prefix != self.base:
            return f"{VENV}/bin/python"
        return f"{self._base_inside}/bin/{self.name}"

    @property
    def _base_inside(self) -> str:
        return str(self.base) if self.base.is_relative_to("/usr") else BASE

    def mounts(self) -> list[tuple[Path, str]]:
        """(folder here, folder in the container), read-only."""
        found = []
        if self._base_inside == BASE:
            found.append((self.base, BASE))
        if self.prefix != self.base:
            found.append((self.site, f"{VENV}/lib/{self.name}/site-packages"))
        return found

    def furnish(self, root: Path) -> None:
        """The folders that `mounts` needs, and a virtual environment whose parts are those mounts."""
        for _, target in self.mounts():
            (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        if self.prefix == self.base:
            return
        binaries = root / VENV.lstrip("/") / "bin"
        binaries.mkdir(parents=True, exist_ok=True)
        for name in ("python", "python3", self.name):
            (binaries / name).symlink_to(f"{self._base_inside}/bin/{self.name}")
        config = (self.prefix / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        kept = [line for line in config if line.startswith("include-system-site-packages")]
        text = "\n".join([f"home = {self._base_inside}/bin", *kept, ""])
        (root / VENV.lstrip("/") / "pyvenv.cfg").write_text(text, encoding="utf-8")

    def environment(self, *, isolated: bool) -> dict[str, str]:
        """What the interpreter itself needs: where to find programs, and its own shared library."""
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if not isolated:
            return {"PATH": f"{self.executable.parent}:{system}"}
        found = {"PATH": f"{Path(self.inside).parent}:{system}"}
        if self._base_inside == BASE and list((self.base / "lib").glob("libpython*.so*")):
            found["LD_LIBRARY_PATH"] = f"{BASE}/lib"
        return found
