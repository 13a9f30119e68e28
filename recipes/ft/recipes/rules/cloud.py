"""Rules about `cloud:`. What a backend refuses only once the run was sent is found here."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from ft.recipes.catalog import GPUS
from ft.recipes.errors import KeyPath, Severity
from ft.recipes.facts import Facts
from ft.recipes.rules.base import Finding, Rule
from ft.recipes.schema import FlatRecipe
from ft.recipes.schema.cloud import NEVER, CloudBlock, GpuChoice, duration_s, gpu_choices
from ft.recipes.secrecy import (
    holds_a_secret,
    is_named_like_a_secret,
    is_plain,
    is_rather_a_value,
)

# From the docstrings and messages of Modal's client 1.6.4 and its guide on GPUs as of November 2026; the service
# itself was not asked. The client checks only that the count is a whole number.
MODAL_GPUS: Final[Mapping[str, int]] = {
    "T4": 8,
    "L4": 8,
    "A10": 4,
    "L40S": 8,
    "A100": 8,
    "A100-40GB": 8,
    "A100-80GB": 8,
    "RTX-PRO-6000": 8,
    "H100": 8,
    "H200": 8,
    "B200": 8,
}
"""Modal's name of a GPU -> how many of them a container can have."""
MODAL_PINS: Final = ("H100!", "B200+")
MODAL_GPUS_PER_HOST: Final = 8
MODAL_LONGEST_S: Final = 86_400
"""Of one attempt; the time in the queue does not count."""
MODAL_NAME: Final = r"[A-Za-z0-9._-]{1,63}"
"""What a volume or a secret can be called; a string, so that it is compiled when it is first needed."""
MODAL_NO_MOUNTS: Final = ("/", "/root", "/tmp")  # noqa: S108  # a path that is refused
MODAL_OWN: Final[Mapping[str, str]] = {
    "cpu": "cloud.cpu",
    "env": "cloud.env",
    "ephemeral_disk": "cloud.disk",
    "gpu": "cloud.gpu",
    "image": "cloud.image",
    "memory": "cloud.memory",
    "region": "cloud.region",
    "retries": "cloud.retries",
    "secrets": "cloud.secrets",
    "timeout": "cloud.timeout",
    "volumes": "cloud.volumes",
}
"""Argument of Modal's -> the key that says the same, and is checked."""

BUCKET_SECRETS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("s3", "r2"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
    "gs": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
"""Scheme of a bucket -> the variables that open it, of those that its library knows."""

MUCH_BYTES: Final = 1 << 30
"""More than that in `cloud.include` is rather a mistake."""

SKY_OWN: Final[Mapping[str, str]] = {
    "envs": "cloud.env",
    "name": "--name",
    "num_nodes": "cloud.nodes",
    "resources.accelerators": "cloud.gpu",
    "resources.any_of": "cloud.region",
    "resources.autostop": "cloud.autostop",
    "resources.cpus": "cloud.cpu",
    "resources.disk_size": "cloud.disk",
    "resources.infra": "cloud.region",
    "resources.memory": "cloud.memory",
    "resources.ordered": "cloud.gpu",
    "resources.use_spot": "cloud.spot",
    "secrets": "cloud.secrets",
}
"""Field of SkyPilot's task -> the key that says the same, and is checked."""
SKY_OURS: Final = ("file_mounts", "run", "setup", "workdir")
"""Fields of the task that are what `ft` does."""

SKY_NEVER_DOWN: Final = ("hyperbolic", "primeintellect", "verda", "yotta")
"""Where SkyPilot 0.14.1 cannot take an idle cluster down: CloudImplementationFeatures.AUTODOWN of its clouds/*.py."""

READ_BY: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("cpu", "disk", "env", "image", "memory"), ("modal", "sky")),
    **dict.fromkeys(("region", "retries", "secrets"), ("modal", "sky")),
    **dict.fromkeys(("sky", "spot"), ("sky",)),
    **dict.fromkeys(("cache_volume", "modal", "store_volume", "volumes"), ("modal",)),
    "store": ("local", "sky"),
}
"""Key -> the backends that read it; one that is not here is everybody's."""


def _choices_have_one_plan(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A plan has one layout. With another number of processes, another batch would be trained."""
    choices = list(_choices(recipe))
    seen: set[str] = set()
    for key, choice in choices:
        first = choices[0][1]
        if choice.count != first.count:
            message = (
                f"{choice.named}:{choice.count} has not as many as the first choice, "
                f"{first.named}:{first.count}, and a plan is made for one number of processes. "
                f"Write `{choice.named}:{first.count}`."
            )
            yield Finding(key, message)
        elif (choice.name == "cpu") != (first.name == "cpu"):
            yield Finding(key, "a CPU does not stand in for a GPU, nor a GPU for a CPU. Keep one.")
        elif choice.named in seen:
            yield Finding(key, f"{choice.named} is there twice. Keep one.", Severity.WARNING)
        seen.add(choice.named)


def _modal_has_the_gpu(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Modal takes any text for a GPU, and refuses it when the run is there; without one there is none to plan for."""
    block = _on_modal(recipe)
    if block is None:
        return
    if block.gpu is None:
        message = "required with `backend: modal`: H100:8 for eight of them, or cpu"
        yield Finding(("cloud", "gpu"), message)
    for key, choice in _choices(recipe):
        most = MODAL_GPUS.get(choice.name)
        if choice.name == "A10G":
            count = min(choice.count, MODAL_GPUS["A10"])
            yield Finding(key, f"Modal calls it A10. Write `A10:{count}`.")
        elif choice.pin and choice.named not in MODAL_PINS:
            pins = " and ".join(f"`{pin}`" for pin in MODAL_PINS)
            message = f"Modal has no {choice.named}, only {pins}. Write `{choice.name}`."
            yield Finding(key, message)
        elif most is None and choice.name in GPUS and choice.name != "cpu":
            known = ", ".join(name for name in MODAL_GPUS if name in GPUS)
            yield Finding(key, f"Modal has no {choice.name}. It has {known}.")
        elif most is not None and choice.count > most:
            nodes = -(-choice.count // most) * (block.nodes or 1)
            more = "" if most < MODAL_GPUS_PER_HOST else f", and `nodes: {nodes}`"
            message = (
                f"a container on Modal has at most {most} {choice.name}, not {choice.count}. "
                f"Write `{choice.named}:{most}`{more}."
            )
            yield Finding(key, message)


def _modal_has_whole_hosts(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Several machines on Modal are whole hosts with eight GPUs each; it has no clusters of CPUs."""
    block = _on_modal(recipe)
    if block is None or block.nodes in {None, 1}:
        return
    for at, choice in _choices(recipe):
        most = MODAL_GPUS.get(choice.name, 0)
        if choice.name == "cpu" or 0 < most < MODAL_GPUS_PER_HOST:
            name = "CPUs" if choice.name == "cpu" else choice.name
            message = f"Modal has no clusters of {name}. Name another GPU, or write `nodes: 1`."
            yield Finding(at, message)
        elif choice.count < most:
            message = (
                f"{block.nodes} machines on Modal are whole hosts, and {choice.count} {choice.name} are a part of one. "
                f"Write `{choice.named}:{most}`, or `nodes: 1`."
            )
            yield Finding(at, message)


def _modal_ends_an_attempt(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Modal gives an attempt 24 hours, and its library does not say so. A longer run is a chain of attempts."""
    block = _on_modal(recipe)
    if block is None or block.timeout is None:
        return
    if duration_s(block.timeout) > MODAL_LONGEST_S:
        message = (
            f"{block.timeout} is longer than the 24 hours that Modal gives one attempt. Write `24h`: shortly before, "
            "the run saves and a new attempt goes on from there, as often as it takes."
        )
        yield Finding(("cloud", "timeout"), message)


def _volumes_can_be_mounted(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Modal mounts a volume once, at a path without detours, and not over what the machine itself needs."""
    block = _on_modal(recipe)
    if block is None:
        return
    taken: dict[str, str] = {}
    for key, name in _volumes(block):
        place = ".".join(map(str, key[:-1] if key[-1] == "name" else key))
        if re.fullmatch(MODAL_NAME, name) is None:
            message = "expected at most 63 letters, digits and ._-, as Modal has them for a name"
            yield Finding(key, message)
        elif taken.setdefault(name, place) != place:
            message = f"the volume {name} is `{taken[name]}` already; Modal mounts one only once. Use another."
            yield Finding(key, message)
    mounts: set[str] = set()
    for index, volume in enumerate(block.volumes or ()):
        key, path = ("cloud", "volumes", index, "mount"), volume.mount
        plain = "/" + "/".join(part for part in path.split("/") if part not in {"", "."})
        if ".." in path.split("/"):
            yield Finding(key, f"{path} has `..` in it. Write the path itself.")
        elif plain in MODAL_NO_MOUNTS:
            message = (
                f"nothing can be mounted at {plain} on Modal. Take another path, such as /data."
            )
            yield Finding(key, message)
        elif plain != path:
            yield Finding(key, f"Modal wants a path without detours. Write `{plain}`.")
        elif plain in mounts:
            yield Finding(key, f"another volume is mounted at {plain}. Take another path.")
        mounts.add(plain)


def _one_store(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A run lies in one place; of two, nobody knows which one a new attempt goes on from."""
    block = recipe.cloud.cloud
    if block is None:
        return
    # Modal does not read `store`, which another rule says.
    keys = ("store_volume", "store_bucket", *(("store",) if block.backend != "modal" else ()))
    there = [key for key in keys if getattr(block, key) is not None]
    for key, other in pairwise(there):
        message = f"stands beside `{other}`; both say where the run lies. Keep one."
        yield Finding(("cloud", key), message)


def _a_container_can_open_the_bucket(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A container on Modal has no role of a cloud's, and nothing of the laptop but what the recipe names."""
    block = _on_modal(recipe)
    if block is None or block.store_bucket is None or block.secrets or block.env:
        return
    names = BUCKET_SECRETS[block.store_bucket.partition("://")[0]]
    message = (
        "a container on Modal opens it with what `cloud.secrets` names, and nothing is named. "
        f"Write `secrets: [{', '.join(names)}]`."
    )
    yield Finding(("cloud", "store_bucket"), message)


def _secrets_are_names(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A recipe is for sharing. A secret that stands in one is none any more, so a message does not repeat it either."""
    block = recipe.cloud.cloud
    seen: set[str] = set()
    for index, name in enumerate((block and block.secrets) or ()):
        key: KeyPath = ("cloud", "secrets", index)
        before, is_assigned, value = name.partition("=")
        if is_assigned:
            # The end of a secret in base64 is `=` as well.
            is_name = re.fullmatch(r"[A-Za-z_]\w*", before) and not is_rather_a_value(before)
            named = f"`{before}`" if is_name and value.strip("=") else "the name alone"
            message = (
                f"names, never values: write {named}, and set it where `ft` is started. "
                "Change the secret: it was in a file."
            )
            yield Finding(key, message)
        elif is_rather_a_value(name):
            message = (
                "this looks like a secret itself: names, never values, such as `HF_TOKEN`. "
                "Change the secret: it was in a file."
            )
            yield Finding(key, message)
        elif re.fullmatch(MODAL_NAME, name) is None:
            yield Finding(key, "expected a name: at most 63 letters, digits and ._-")
        elif name in seen:
            yield Finding(key, "is there twice. Keep one.", Severity.WARNING)
        seen.add(name)


def _no_secret_is_public(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """Everybody who may see the run can read its variables, its image and the arguments of its function."""
    block = recipe.cloud.cloud
    if block is None:
        return
    for name, value in (block.env or {}).items():
        yield from _public(("cloud", "env", name), name, value)
    for key, name, value in _named_values(block.modal or {}, ("cloud", "modal")):
        yield from _public(key, name, value)
    for key, name, value in _named_values(block.sky or {}, ("cloud", "sky")):
        yield from _public(key, name, value)
    for part in ("apt", "pip", "commands"):
        for index, line in enumerate(getattr(block.image, part, None) or ()):
            yield from _in_line(("cloud", "image", part, index), line)


def _in_line(key: KeyPath, line: str) -> Iterator[Finding]:
    """What a line of a Dockerfile, or an address, gives away: `ENV HF_TOKEN=…`, but not `sort --key=2`."""
    assigned = re.findall(r"\b([A-Z][A-Z0-9_]*)=(\S+)", line)
    for name, value in [*assigned, *re.findall(r"^ENV\s+(\w+)[\s=]+(\S+)", line)]:
        if is_named_like_a_secret(name) and not is_plain(value):
            yield from _public(key, name, value)
            return
    if holds_a_secret(line):
        message = (
            "there is something like a secret in it, and everybody with the image can read it. Take it out. "
            "Change the secret: it was in a file."
        )
        yield Finding(key, message)


def _public(key: KeyPath, name: str, value: str) -> Iterator[Finding]:
    is_named = is_named_like_a_secret(name) and not is_plain(value)
    if is_named or holds_a_secret(value):
        why = "is named" if is_named else "has a value that looks"
        message = (
            f"{name} {why} like a secret, and this can be read by many. "
            f"Take it out, and write its name under `cloud.secrets`: `[{name}]`."
        )
        yield Finding(key, message)


def _named_values(value: object, at: KeyPath) -> Iterator[tuple[KeyPath, str, str]]:
    """The texts in a mapping, each with where it stands and its name."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, str):
                yield (*at, name), str(name), item
            yield from _named_values(item, (*at, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str):
                yield (*at, index), str(at[-1]), item
            yield from _named_values(item, (*at, index))


def _modal_passes_no_check(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """What has a key of its own is checked there and stands in the plan; under `modal` it would pass by both."""
    block = recipe.cloud.cloud
    values: Mapping[str, Any] = (block and block.modal) or {}
    for name in values:
        if name in MODAL_OWN:
            message = f"has a key of its own that `ft` reads and checks. Write `{MODAL_OWN[name]}`."
            yield Finding(("cloud", "modal", name), message)
    on_gpu = any(choice.name != "cpu" for _at, choice in _choices(recipe))
    if values.get("nonpreemptible") is True and on_gpu:
        message = (
            "Modal has no GPUs that it does not take back. Take it out: "
            "a run that is interrupted saves, and goes on by itself."
        )
        yield Finding(("cloud", "modal", "nonpreemptible"), message)


def _sky_is_told_enough(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """SkyPilot looks for machines with what is asked for; what the run leaves behind has to outlive them."""
    block = recipe.cloud.cloud
    if block is None or block.backend != "sky":
        return
    if block.gpu is None:
        message = "required with `backend: sky`: H100:8 for eight of them, or cpu"
        yield Finding(("cloud", "gpu"), message)
    if block.store_bucket is None and block.store is None:
        message = (
            "required with `backend: sky`: s3://BUCKET/PREFIX, gs://…, az://… or r2://…, or `store: /FOLDER` on a file "
            "system that this machine and the nodes mount; machines come and go, and the run stays there"
        )
        yield Finding(("cloud", "store_bucket"), message)
    if block.store is not None and not block.store.startswith("/"):
        message = (
            f"{block.store} is another folder on each machine. Write the absolute path that this machine and the nodes "
            "mount, such as /shared/runs."
        )
        yield Finding(("cloud", "store"), message)


def _sky_passes_no_check(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """What has a key of its own is checked there and stands in the plan; under `sky` it would pass by both."""
    block = recipe.cloud.cloud
    values: Mapping[str, Any] = (block and block.sky) or {}
    resources = values.get("resources")
    below = resources if isinstance(resources, Mapping) else {}
    for name in (*values, *(f"resources.{name}" for name in below)):
        key: KeyPath = ("cloud", "sky", *name.split("."))
        if name in SKY_OWN:
            message = f"has a key of its own that `ft` reads and checks. Write `{SKY_OWN[name]}`."
            yield Finding(key, message)
        elif name in SKY_OURS:
            message = "is what `ft` does itself. Take it out; `cloud.image` has room for packages and commands."
            yield Finding(key, message)


def _pushed_images_are_exact(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A machine compares what it is in with the recipe; that it can be the right one at all is said here."""
    block = recipe.cloud.cloud
    pushed = block.image.pushed if block is not None and block.image is not None else None
    if block is None or pushed is None:
        return
    key: KeyPath = ("cloud", "image", "pushed")
    if "@" not in pushed:
        message = (
            f"{pushed} names no digest, and a tag can stand for another image tomorrow. Write it as `ft image push "
            f"RECIPE {pushed}` prints it, {pushed}@sha256:…; with `--write` it stands here."
        )
        yield Finding(key, message)
    if block.backend == "modal":
        message = (
            "read by backend `sky` only: Modal builds the same layers by itself, and has the source without a push. "
            "It does nothing here."
        )
        yield Finding(key, message, Severity.WARNING)
    resources = (block.sky or {}).get("resources")
    if isinstance(resources, Mapping) and "image_id" in resources:
        message = "is another image than `cloud.image.pushed`, which machines run in. Keep one of the two."
        yield Finding(("cloud", "sky", "resources", "image_id"), message)


def _plain_clusters_are_skypilots(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A cluster to iterate on is SkyPilot's, has no controller that begins a job anew, and may be idle for a while."""
    block = recipe.cloud.cloud
    if block is None:
        return
    if block.cluster is None:
        if block.autostop is not None:
            message = "bounds what an idle `cluster` costs, and none is named: machines of a managed job go with it."
            yield Finding(("cloud", "autostop"), message, Severity.WARNING)
        return
    if block.backend != "sky":
        message = f"a cluster of SkyPilot's, and the backend is `{block.backend or 'local'}`. Write `backend: sky`."
        yield Finding(("cloud", "cluster"), message)
        return
    if block.spot:
        message = (
            f"a machine of cluster {block.cluster} that is taken back is not replaced: the run saves and breaks off, "
            "and `ft cloud resume` goes on. Leave `cluster` out: then another machine does."
        )
        yield Finding(("cloud", "spot"), message, Severity.WARNING)
    if block.retries is not None:
        message = (
            "counts machines that are replaced, which those of a `cluster` are not. Take it out."
        )
        yield Finding(("cloud", "retries"), message, Severity.WARNING)
    regions = (block.region,) if isinstance(block.region, str) else block.region or ()
    for region in regions:
        cloud = region.partition("/")[0].lower()
        if cloud in SKY_NEVER_DOWN and block.autostop != NEVER:
            message = (
                f"SkyPilot cannot take down an idle cluster on {cloud}. Write `autostop: never`, and end it yourself: "
                f"`sky down {block.cluster}`."
            )
            yield Finding(("cloud", "region"), message)


def _backend_reads_the_key(recipe: FlatRecipe, _: Facts) -> Iterator[Finding]:
    """A key that the backend of a run does not read has no effect; often the backend is what was forgotten."""
    block = recipe.cloud.cloud
    if block is None:
        return
    backend = block.backend or "local"
    if isinstance(block.gpu, tuple) and backend == "local":
        message = "backend `local` is one machine, with the GPUs that it has. Name those, or none."
        yield Finding(("cloud", "gpu"), message, Severity.WARNING)
    for at, choice in _choices(recipe):
        if choice.pin and backend != "modal":
            message = f"the `{choice.pin}` of {choice.named} is for backend `modal` only. Write `{choice.name}`."
            yield Finding(at, message, Severity.WARNING)
    for key, readers in READ_BY.items():
        if getattr(block, key) is None or backend in readers:
            continue
        names = " and ".join(f"`{name}`" for name in readers)
        plural = "s" if len(readers) > 1 else ""
        is_chosen = (
            f"not `{backend}`" if block.backend else "and none is named: it would be `local`"
        )
        way_out = f"Take it out, or choose `backend: {readers[0]}`."
        if key == "store" and backend == "modal":
            way_out = "Write `store_volume` or `store_bucket`."
        message = f"read by backend{plural} {names} only, {is_chosen}. {way_out}"
        yield Finding(("cloud", key), message, Severity.WARNING)


def _included_files_can_go(recipe: FlatRecipe, facts: Facts) -> Iterator[Finding]:
    """What a run misses, or should never have seen, is found before it travels: missing files, links, secrets."""
    block = recipe.cloud.cloud
    seen: set[str] = set()
    for index, entry in enumerate((block and block.include) or ()):
        path = posixpath.normpath(entry)
        if path in seen:
            message = f"{entry!a} is there twice. Keep one."
            yield Finding(("cloud", "include", index), message, Severity.WARNING)
        seen.add(path)
    included = facts.included
    if included is None:
        return
    for key, complaint in included.complaints:
        yield Finding(key, complaint)
    if included.size > MUCH_BYTES and not included.complaints:
        message = (
            f"{included.size / 2**30:.1f} GiB in {len(included.files)} files go along with every run. Leave out what "
            "it does not need by a `.ftignore`; what is large and seldom changes lies better on a volume."
        )
        yield Finding(("cloud", "include"), message, Severity.WARNING)


def _on_modal(recipe: FlatRecipe) -> CloudBlock | None:
    """The block of a recipe that names backend `modal`."""
    block = recipe.cloud.cloud
    return block if block is not None and block.backend == "modal" else None


def _choices(recipe: FlatRecipe) -> Iterator[tuple[KeyPath, GpuChoice]]:
    """What `cloud.gpu` asks for, each with where it stands."""
    gpu = recipe.cloud.cloud.gpu if recipe.cloud.cloud else None
    for index, choice in enumerate(gpu_choices(gpu)):
        yield ("cloud", "gpu") if isinstance(gpu, str) else ("cloud", "gpu", index), choice


def _volumes(block: CloudBlock) -> Iterator[tuple[KeyPath, str]]:
    """Every volume of a run: where its name stands, and the name."""
    for key in ("store_volume", "cache_volume"):
        name = getattr(block, key)
        if name is not None:
            yield ("cloud", key), name
    for index, volume in enumerate(block.volumes or ()):
        yield ("cloud", "volumes", index, "name"), volume.name


RULES: Final = (
    Rule("R184", _choices_have_one_plan),
    Rule("R185", _modal_has_the_gpu),
    Rule("R186", _modal_has_whole_hosts),
    Rule("R187", _modal_ends_an_attempt),
    Rule("R188", _volumes_can_be_mounted),
    Rule("R189", _one_store),
    Rule("R190", _secrets_are_names),
    Rule("R191", _no_secret_is_public),
    Rule("R192", _modal_passes_no_check),
    Rule("R193", _backend_reads_the_key),
    Rule("R194", _included_files_can_go),
    Rule("R195", _sky_is_told_enough),
    Rule("R196", _sky_passes_no_check),
    Rule("R197", _plain_clusters_are_skypilots),
    Rule("R198", _pushed_images_are_exact),
    Rule("R199", _a_container_can_open_the_bucket),
)
