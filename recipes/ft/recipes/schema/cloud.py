"""The one block that is ours: where the run goes, and what it finds there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from ft.recipes.schema.base import Section, Seq, implemented, limits
from ft.recipes.schema.values import JsonMapping

DURATION: Final = re.compile(r"([1-9][0-9]*)([smhd])")
NEVER: Final = "never"
AUTOSTOP: Final = "30m"
UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(value: int | str) -> int:
    """Seconds of a number of seconds, or of `90m`, `6h`, `1d`. Raises: ValueError if it is neither."""
    if isinstance(value, int):
        return value
    found = DURATION.fullmatch(value)
    if found is None:
        raise ValueError(f"{value!r} is no duration: expected seconds, or 90m, 6h, 1d")
    return int(found[1]) * UNIT_S[found[2]]


def autostop_s(value: int | str | None) -> int | None:
    """Seconds that a cluster may be idle, as `cloud.autostop` says; None for ever."""
    return None if value == NEVER else duration_s(AUTOSTOP if value is None else value)


@dataclass(frozen=True, slots=True)
class GpuChoice:
    """What one text of `cloud.gpu` asks for."""

    name: str
    pin: str
    """`!`: this kind and no better one; `+`: this kind or a better one; empty: as the backend does it."""
    count: int
    """Accelerators per machine."""

    @property
    def named(self) -> str:
        """The name with its pin: `H100!`."""
        return f"{self.name}{self.pin}"


def gpu_choices(gpu: str | Seq[str] | None) -> Iterator[GpuChoice]:
    """What `cloud.gpu` asks for, the first choice first; nothing if it is not set."""
    for text in (gpu,) if isinstance(gpu, str) else gpu or ():
        name, _, count = text.partition(":")
        pin = name[-1] if name.endswith(("!", "+")) else ""
        yield GpuChoice(name.removesuffix(pin) if pin else name, pin, int(count or 1))


NonEmpty = Annotated[str, limits(min_length=1)]
NonEmptyList = Annotated[Seq[NonEmpty], limits(min_length=1)]
GpuText = Annotated[str, limits(pattern=r"^[A-Za-z0-9-]+[!+]?(:[1-9][0-9]{0,3})?$")]
EnvName = Annotated[str, limits(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ImageAdditions(Section):
    """What the image of a run is made on, and gets beside what `ft` needs; in this order."""

    base: (
        Annotated[
            str,
            limits(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$"),
        ]
        | None
    ) = implemented()
    """Image to begin with: Debian or Ubuntu with `python` and pip of ft's version. `ft image pin` writes it with
    the digest of the day, so that it stays the same one. Default: Python's own, by its tag."""
    pushed: (
        Annotated[
            str,
            limits(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$"),
        ]
        | None
    ) = implemented()
    """This very image where `ft image push` has put it, `REGISTRY/NAME:TAG@sha256:…`, for `sky`: machines that can run
    containers then install nothing. The digest is required; `ft image push --write` writes it. A machine refuses an
    image that is not the recipe's. Default: none, machines install what an image would hold."""
    apt: NonEmptyList | None = implemented()
    """Packages of the distribution, as `apt-get install` names them. Default: none."""
    pip: NonEmptyList | None = implemented()
    """Packages of Python, as `pip install` names them: `scipy==1.15.3`. Default: none."""
    commands: NonEmptyList | None = implemented()
    """Lines of a Dockerfile, such as `RUN make -C /opt/tool`. No secrets: an image is readable.
    Default: none."""


class VolumeMount(Section):
    """A volume of the backend that the run finds at a path."""

    name: Annotated[str, limits(min_length=1)]
    """Name of the volume. It must be there: a run that reads from it would find nothing else. Required."""
    mount: Annotated[str, limits(pattern=r"^/")]
    """Absolute path on the machine. Required."""


class CloudBlock(Section):
    """`cloud:` in a recipe."""

    backend: Literal["local", "modal", "sky"] | None = implemented(
        default="local", runs=("local", "modal", "sky")
    )
    """Where the run goes. Default: `local`."""
    gpu: GpuText | Annotated[Seq[GpuText], limits(min_length=1)] | None = implemented()
    """Accelerators per machine, `NAME:COUNT`: `H100:8`, or `cpu:2` for two processes on the CPU. A list is
    taken in its order, the next one when there are none of one. `H100!` is no H200 either, `B200+` may be a
    better one. Default on `local`: what the machine has."""
    nodes: int | None = implemented(ge=1)
    """Machines. Default: 1."""
    region: NonEmpty | NonEmptyList | None = implemented()
    """Where the machines may be, by the backend's names: `us-east` on `modal`, `aws/us-east-1`, `kubernetes` or
    `slurm/CLUSTER` on `sky`, or a list. Default: anywhere."""
    spot: bool | None = implemented()
    """Whether machines that may be taken back will do; a run that loses one goes on elsewhere. Default: `false`
    on `sky`; all GPUs of `modal` are of that kind."""
    cluster: str | None = implemented(pattern=r"^([a-zA-Z]|[a-zA-Z][-_.a-zA-Z0-9]*[a-zA-Z0-9])$")
    """Plain cluster of SkyPilot's to run on, in place of a managed job: made if there is none of this name, else
    used again, so that the next run begins sooner. A machine of it that is lost is not replaced. Default: none."""
    autostop: (
        Annotated[int, limits(ge=60)]
        | Annotated[str, limits(pattern=r"^([1-9][0-9]*[smhd]|never)$")]
        | None
    ) = implemented()
    """Time that `cluster` may have nothing to do before SkyPilot takes it down: seconds, or `90m`, `6h`, `1d`, in
    whole minutes; `never` leaves it until `sky down`. Default: `30m`."""
    cpu: float | None = implemented(gt=0)
    """CPU cores per machine. Default: the backend's choice for the GPU."""
    memory: float | None = implemented(gt=0)
    """Memory per machine, in GiB. Default: the backend's choice for the GPU."""
    disk: float | None = implemented(gt=0)
    """Disk per machine that lasts as long as the machine does, in GiB. Default: the backend's choice."""

    store: str | None = None
    """Folder that holds the run: plan, inputs, checkpoints, status. On `sky` the absolute path of a folder that this
    machine and all nodes mount, in place of `store_bucket`. Default: on `local` the user's data folder."""
    store_volume: str | None = implemented(min_length=1)
    """Volume of the backend that holds the run in place of a folder; it is made if it is not there.
    Default: one of the backend's own."""
    store_bucket: str | None = implemented(
        pattern=r"^(s3|gs|az|r2)://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?$"
    )
    """Bucket that holds the run, so that it outlives its machines and may move to another backend:
    `s3://BUCKET/PREFIX`, `gs://…`, `az://…` or `r2://…`. What opens it there stands in `secrets`. Required on `sky`, or
    `store`. Default: none."""
    cache_volume: str | None = implemented(min_length=1)
    """Volume of the backend that keeps models, data sets and prepared rows for later runs; it is made if it
    is not there. Default: one of the backend's own."""
    volumes: Annotated[Seq[VolumeMount], limits(min_length=1)] | None = implemented()
    """More volumes of the backend that the run shall see, with their paths. Default: none."""

    timeout: (
        Annotated[int, limits(ge=1)] | Annotated[str, limits(pattern=r"^[1-9][0-9]*[smhd]$")] | None
    ) = None
    """Longest time of one attempt: seconds, or `90m`, `6h`, `1d`. Shortly before, the run saves and a new
    attempt goes on from there. Default: no limit on `local`."""
    retries: int | None = implemented(ge=0, le=10)
    """Times that the backend starts an attempt anew that broke off. A new attempt after `timeout` is none of
    them. Default: the backend's choice."""
    max_cost: float | None = implemented(gt=0)
    """US dollars for the whole run, all attempts together. Shortly before, the run saves and ends.
    Needs `price_per_hour` where the backend has no price. Default: no limit."""
    price_per_hour: float | None = implemented(gt=0)
    """US dollars for an hour of all machines of the run. Default: the backend's price; unknown on `local`."""

    secrets: NonEmptyList | None = implemented()
    """Names of secrets, never their values: a variable of this machine's environment, or a secret that the
    backend keeps. The run finds them in its environment; no image, plan or log has them. Default: none."""
    env: dict[EnvName, str] | None = implemented()
    """Variables of the run's environment, for everybody to read. What is secret goes into `secrets`.
    Default: none."""
    image: ImageAdditions | None = implemented()
    """What the image gets beside what `ft` needs. Default: nothing."""
    include: NonEmptyList | None = implemented()
    """Files, folders and patterns (`prompts/**/*.txt`) that go along, such as code of your own: the run finds
    them under the same paths in its working directory. Of a folder not what its `.ftignore` names, in the
    form of a `.gitignore`. Default: none but the files that the recipe names."""
    modal: JsonMapping | None = implemented()
    """More arguments for the function on Modal, by Modal's names: they are put in last, and the dry-run shows
    them. Only for what has no key here. Default: none."""
    sky: JsonMapping | None = implemented()
    """More fields of SkyPilot's task, by its names: they are put in last, and the dry-run shows them. Only for
    what has no key here. Default: none."""


class CloudKeys(Section):
    """Where the run goes."""

    cloud: CloudBlock | None = None
    """Backend, machines and store of the run."""
