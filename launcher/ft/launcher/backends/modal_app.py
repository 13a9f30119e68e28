"""A request, as `--dry-run` prints it -> an App on Modal. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import modal

from ft.images import bundle
from ft.images.dockerfile import SOURCE_ROOT
from ft.launcher.backends import modal_remote

VOLUME_VERSION: Final = 2


class ModalCloud:
    """The app of one run. `config` is the request of its submission; `app` replaces the one that it would make.

    The image has our layers from what changes rarely to what changes often; the source is mounted, not built in.
    Secrets and variables go to functions and enter no layer.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        app: modal.App | None = None,
        *,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        """`secrets`: values of the secrets that this laptop's environment has; they go nowhere but to Modal."""
        self.config = config
        self.app = app or modal.App(config["app"], tags=dict(config["tags"]))
        self._secrets = dict(secrets or {})
        self.volumes: dict[Any, modal.Volume] = {
            path: modal.Volume.from_name(
                volume["name"],
                create_if_missing=volume["create"],
                version=VOLUME_VERSION if volume["create"] else None,
            )
            for path, volume in config["volumes"].items()
        }
        self.functions: dict[str, Any] = {}
        image = self.image()
        for name, options in config["functions"].items():
            self._define(name, options, image)

    def image(self) -> modal.Image:
        """The same request, the same definition."""
        wanted = self.config["image"]
        image = modal.Image.from_registry(wanted["base"]).entrypoint([])
        for layer in wanted["layers"]:
            image = image.dockerfile_commands(layer)
        for name, folder in _rooms().items():
            image = image.add_local_dir(folder, f"{SOURCE_ROOT}/ft/{name}", ignore=_is_debris)
        return image

    def _define(self, name: str, options: Mapping[str, Any], image: modal.Image) -> None:
        values = dict(options)
        retries = values.pop("retries", None)
        nodes = values.pop("nodes", 1)
        function: Any = getattr(modal_remote, name)
        if nodes > 1:
            function = modal.clustered(size=nodes, rdma=bool(values.get("gpu")))(function)
        self.functions[name] = self.app.function(
            image=image,
            volumes=dict(self.volumes),
            secrets=self.secrets(),
            env=dict(self.config["env"]) or None,
            retries=None if retries is None else modal.Retries(**retries),
            include_source=False,
            **values,
        )(function)

    def secrets(self) -> list[modal.Secret]:
        """One with the values of this laptop's environment, and those that Modal keeps, by name."""
        found = [modal.Secret.from_name(name) for name in self.config["secrets"]["on_modal"]]
        here = {name: self._secrets[name] for name in self.config["secrets"]["from_here"]}
        return [*found, modal.Secret.from_dict(dict(here))] if here else found

    def deploy(self) -> str:
        """Deploy; the id of the app. Raises: what modal raises, ImageBuildError among it."""
        return str(self.app.deploy().app_id)

    def spawn(self, function: str, job: Mapping[str, Any]) -> str:
        """Start a call of a function, once all is deployed; its id."""
        return str(self.functions[function].spawn(dict(job)).object_id)

    def run_cmd(
        self,
        cmd: str | Sequence[str],
        run_folder: str,
        volumes: Mapping[str, modal.Volume] | None = None,
    ) -> int:
        """In a container: see `modal_remote.run_cmd`, with the volumes of this run unless others are named."""
        return modal_remote.run_cmd(cmd, run_folder, self.volumes if volumes is None else volumes)


def _rooms() -> dict[str, Path]:
    """Room -> its folder on this machine."""
    found: dict[str, Path] = {}
    for name, path in bundle.package_files():
        room = name.split("/")[1]
        found.setdefault(room, next(p for p in path.parents if p.name == room))
    return found


def _is_debris(path: Path) -> bool:
    """What is no part of the bundle either."""
    return any(bundle.is_debris(Path(part)) for part in path.parts)
