"""Notices of clouds that take a machine back, from a server that answers as their documentation says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ft.launcher.machine.spot import grace_s, is_going, question_for

ANSWERS: dict[tuple[str, str], str] = {}


class Metadata(BaseHTTPRequestHandler):
    """Each cloud's service wants its header, and refuses what lacks it."""

    def do_PUT(self) -> None:
        if (
            self.path != "/latest/api/token"
            or self.headers["X-aws-ec2-metadata-token-ttl-seconds"] != "21600"
        ):
            self.answer(400, "")
            return
        self.answer(200, "a-token")

    def do_GET(self) -> None:
        wanted = {
            "/latest": ("X-aws-ec2-metadata-token", "a-token"),
            "/computeMetadata": ("Metadata-Flavor", "Google"),
            "/metadata": ("Metadata", "true"),
        }
        (header,) = [pair for prefix, pair in wanted.items() if self.path.startswith(prefix + "/")]
        if self.headers[header[0]] != header[1]:
            self.answer(401, "")
            return
        text = ANSWERS.get(("GET", self.path))
        self.answer(404 if text is None else 200, text or "")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def base() -> Iterator[str]:
    ANSWERS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


AWS = "/latest/meta-data/spot/instance-action"
GCP = "/computeMetadata/v1/instance/preempted"
AZURE = "/metadata/scheduledevents?api-version=2020-07-01"


@pytest.mark.parametrize(
    ("cloud", "path", "calm", "notice"),
    [
        ("AWS", AWS, None, json.dumps({"action": "terminate", "time": "2026-11-29T22:10:00Z"})),
        ("GCP", GCP, "FALSE", "TRUE\n"),
        ("Azure", AZURE, json.dumps({"DocumentIncarnation": 1, "Events": []}),
         json.dumps({"Events": [{"EventType": "Freeze"}, {"EventType": "Preempt", "Resources": ["vm"]}]})),
    ],
)  # fmt: skip
def test_a_notice_is_heard(base: str, cloud: str, path: str, calm: str | None, notice: str) -> None:
    question = question_for(cloud, base)
    assert question is not None
    if calm is not None:
        ANSWERS["GET", path] = calm
    assert not is_going(question)
    ANSWERS["GET", path] = notice
    assert is_going(question)


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"Events": 7}', '{"Events": [7]}'])
def test_what_cannot_be_read_is_no_notice(base: str, text: str) -> None:
    for cloud, path in (("aws", AWS), ("gcp", GCP), ("azure", AZURE)):
        ANSWERS["GET", path] = text
        question = question_for(cloud, base)
        assert question is not None
        assert not is_going(question)


def test_a_service_that_is_not_there_is_no_notice_and_other_clouds_have_none() -> None:
    question = question_for("aws", "http://127.0.0.1:1")
    assert question is not None
    assert not is_going(question)
    assert question_for("Slurm") is None


def test_two_minutes_are_used_where_they_are_given() -> None:
    """The rest is for a notice that is heard 5 s late, 5 s of an agent that is late itself, and the last upload."""
    assert [grace_s(cloud) for cloud in ("AWS", "gcp", "Azure", "slurm", "")] == [
        80,
        20,
        20,
        20,
        20,
    ]
