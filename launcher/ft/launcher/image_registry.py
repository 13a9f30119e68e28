"""A container registry, asked for one thing: the digest that stands behind a tag (OCI distribution API, version 2).

Nobody logs in: a public registry hands a token to whoever asks. A digest is the sha256 of the bytes that arrived.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from ft.recipes.errors import NotFoundError, UnreachableError, UsageError

TIMEOUT_S: Final = 20.0
MAX_BYTES: Final = 4 * 1024 * 1024
"""Of a manifest; registries take no larger ones."""
MANIFESTS: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
"""An index of all kinds of machines before the manifest of one."""
DOCKER_HUB: Final = "docker.io"
_REFERENCE: Final = re.compile(
    r"(?:(?P<host>(?:[A-Za-z0-9-]+\.)+[A-Za-z0-9-]+(?::\d+)?|localhost(?::\d+)?|[A-Za-z0-9.-]+:\d+)/)?"
    r"(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """`registry.example/team/name:tag@sha256:…`; what is left out is Docker Hub, `latest`, and no digest."""

    host: str
    name: str
    tag: str
    digest: str

    @property
    def api(self) -> str:
        """Address of the registry: https, but on this machine."""
        host = "registry-1.docker.io" if self.host == DOCKER_HUB else self.host
        return f"{'http' if is_loopback(self.host) else 'https'}://{host}"

    @property
    def repository(self) -> str:
        return (
            f"library/{self.name}"
            if self.host == DOCKER_HUB and "/" not in self.name
            else self.name
        )


def parse(text: str) -> Reference:
    """Raises: UsageError if it is no name of an image."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no name of an image: expected [REGISTRY/]NAME[:TAG]")
    return Reference(
        found["host"] or DOCKER_HUB, found["name"], found["tag"] or "latest", found["digest"] or ""
    )


def is_tagged(text: str) -> bool:
    """Whether the name of an image says which tag. Raises: UsageError if it is none."""
    parse(text)
    return ":" in text.rpartition("/")[2]


def is_loopback(host: str) -> bool:
    """Whether a registry `host[:port]` is on this machine, where there is no TLS."""
    name = host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def digest_of(reference: Reference) -> str:
    """`sha256:…` of what the tag stands for now.

    Raises: NotFoundError if the registry has no such tag, UnreachableError if it does not answer or not with that.
    """
    address = f"{reference.api}/v2/{reference.repository}/manifests/{reference.tag}"
    accept = {"Accept": ", ".join(MANIFESTS)}
    try:
        try:
            data, said = _get(address, accept)
        except HTTPError as error:
            if error.code != 401:
                raise
            token = _token(reference, error.headers.get("WWW-Authenticate", ""))
            data, said = _get(address, {**accept, "Authorization": f"Bearer {token}"})
    except HTTPError as error:
        shown = f"{reference.host}/{reference.repository}:{reference.tag}"
        if error.code == 404:
            raise NotFoundError(f"{shown}: the registry has no such tag") from None
        raise UnreachableError(f"{shown}: the registry says {error.code} {error.reason}") from None
    except (URLError, HTTPException, OSError, ValueError) as error:
        why = error.reason if isinstance(error, URLError) else error
        raise UnreachableError(f"{reference.host} does not answer: {why}") from None
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if said not in {"", digest}:
        raise UnreachableError(f"{reference.host} says {said}, and what it sent is {digest}")
    return digest


def _get(address: str, headers: dict[str, str]) -> tuple[bytes, str]:
    """The bytes, and the digest that the registry says they have; empty if it says none."""
    # Addresses are https, or of this machine: `Reference.api` and `_token` make no others.
    with urlopen(Request(address, headers=headers), timeout=TIMEOUT_S) as reply:  # noqa: S310  # see above
        data = reply.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes are no manifest")
        return data, reply.headers.get("Docker-Content-Digest", "")


def _token(reference: Reference, challenge: str) -> str:
    """What anybody gets to read a public image: `Bearer realm="…",service="…"`. Raises: ValueError."""
    scheme, _, rest = challenge.partition(" ")
    asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = urlsplit(asked.get("realm", ""))
    is_ours = is_loopback(reference.host) and is_loopback(realm.netloc)
    if scheme.lower() != "bearer" or not (
        realm.scheme == "https" or (realm.scheme == "http" and is_ours)
    ):
        raise ValueError("it wants a login, and only public images can be asked for")
    query = {"scope": f"repository:{reference.repository}:pull"}
    if "service" in asked:
        query["service"] = asked["service"]
    data, _ = _get(f"{realm.geturl()}?{urlencode(query)}", {})
    answer = json.loads(data)
    token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str):
        raise ValueError("it gave no token")
    return token
