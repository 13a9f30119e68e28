"""Whether a machine that was rented at a spot price is about to be taken back: its cloud tells it a while before.

As their documentation has it: AWS two minutes before (instance metadata, version 2), Google Cloud and Azure 30 s.
"""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

log = logging.getLogger("ft.machine")

NOTICE_S: Final[Mapping[str, float]] = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
"""Cloud -> how long before it takes the machine back it says so."""
OTHERWISE_S: Final = 30.0
"""What Slurm leaves behind a SIGTERM and Kubernetes before it kills, unless somebody has set them otherwise."""
SHARE_OF_SAVE: Final = 2 / 3
"""Of a notice: what is left is for its being late, and for the last upload."""
EVERY_S: Final = 5.0
"""As often as AWS recommends to ask."""
ANSWER_S: Final = 2.0
TOKEN_S: Final = 21_600
METADATA: Final = "http://169.254.169.254"
GOOGLE: Final = "http://metadata.google.internal"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a cloud's metadata service."""

    url: str
    headers: Mapping[str, str]
    is_notice: Callable[[str], bool]
    """Of an answer with status 200."""
    token_url: str = ""
    """Where a token is to be had first; empty without one."""


def grace_s(cloud: str) -> float:
    """How long an attempt may take to save on a machine of a cloud, by SkyPilot's name of it."""
    return NOTICE_S.get(cloud.lower(), OTHERWISE_S) * SHARE_OF_SAVE


def question_for(cloud: str, base: str | None = None) -> Question | None:
    """Of a cloud by SkyPilot's name of it; None for one that gives no notice. `base` replaces the service's address."""
    match cloud.lower():
        case "aws":
            root = base or METADATA
            return Question(
                f"{root}/latest/meta-data/spot/instance-action",
                {},
                lambda text: "action" in _object(text),
                token_url=f"{root}/latest/api/token",
            )
        case "gcp":
            url = f"{base or GOOGLE}/computeMetadata/v1/instance/preempted"
            return Question(url, {"Metadata-Flavor": "Google"}, lambda text: text.strip() == "TRUE")
        case "azure":
            url = f"{base or METADATA}/metadata/scheduledevents?api-version=2020-07-01"
            return Question(url, {"Metadata": "true"}, _has_preemption)
        case _:
            return None


def is_going(question: Question) -> bool:
    """Ask once. No answer, or one that cannot be read, is no notice."""
    try:
        headers = dict(question.headers)
        if question.token_url:
            token = _fetch(
                question.token_url,
                {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)},
                method="PUT",
            )
            headers["X-aws-ec2-metadata-token"] = token
        return question.is_notice(_fetch(question.url, headers))
    except (OSError, ValueError):
        return False


def _fetch(url: str, headers: Mapping[str, str], *, method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310  addresses of our own
    # Not through a proxy: this is about the machine itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_S) as response:
        return str(response.read().decode())


def _object(text: str) -> dict[str, object]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _has_preemption(text: str) -> bool:
    events = _object(text).get("Events")
    found = events if isinstance(events, list) else []
    return any(isinstance(event, dict) and event.get("EventType") == "Preempt" for event in found)
