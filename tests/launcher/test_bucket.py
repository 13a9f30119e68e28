"""A run in a bucket, on a real S3 server: whole objects, parts, claims, and what happens when it fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ft.launcher.bucket import PART_BYTES, Bucket, BucketError, BucketName, BucketRefusedError, told
from ft.recipes.errors import StoreError, UnreachableError

URI = "s3://bucket-one/team/run-1"


def sizes(bucket: Bucket, folder: str = "") -> dict[str, int]:
    return {file.path: file.size for file in bucket.listed(folder)}


def test_files_of_any_size_travel_both_ways(object_store: Any, tmp_path: Path) -> None:
    bucket = Bucket(URI)
    contents = {
        "final/big": os.urandom(2 * PART_BYTES + 5),
        "final/empty": b"",
        "final/deep/small": b"text",
    }
    for name, content in contents.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    bucket.upload({name: tmp_path / "from" / name for name in contents})
    assert sizes(bucket) == {name: len(content) for name, content in contents.items()}
    assert bucket.sizes("final") == {"big": 2 * PART_BYTES + 5, "empty": 0, "deep/small": 4}
    bucket.download({name: tmp_path / "to" / name for name in contents})
    assert {name: (tmp_path / "to" / name).read_bytes() for name in contents} == contents
    assert bucket.ranged("final/big", 7, 20) == contents["final/big"][7:20]
    parts = [line for line in object_store.log if line.startswith("PUT") and "big" in line]
    assert len(parts) == 3, "it went up in parts"


def test_what_is_there_with_the_same_bytes_is_not_sent_again(
    object_store: Any, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert Bucket(URI).put("a/file", path)
    assert not Bucket(URI).put("a/file", path)
    path.write_bytes(b"two")
    assert Bucket(URI).put("a/file", path), "of the same size, with other bytes"
    assert Bucket(URI).read("a/file") == b"two"


def test_a_claim_has_one_winner(object_store: Any) -> None:
    assert Bucket(URI).claim("words/holder-1", b"first") == b"first"
    assert Bucket(URI).claim("words/holder-1", b"second") == b"first"
    assert Bucket(URI).read("words/holder-1") == b"first"


def test_a_folder_goes_with_its_manifest_first(object_store: Any, tmp_path: Path) -> None:
    bucket = Bucket(URI)
    for name in ("a/manifest.json", "a/x", "ab/y"):
        bucket.write(name, b"{}")
    bucket.set_aside("a")
    assert sizes(bucket) == {"a/manifest.broken.json": 2, "a/x": 2, "ab/y": 2}
    bucket.write("a/manifest.json", b"{}")
    object_store.log.clear()
    bucket.drop("a")
    assert sizes(bucket) == {"ab/y": 2}, "a folder whose name begins the same stays"
    bucket.drop("a")
    bucket.remove(["nothing"])


def test_throttling_and_broken_connections_are_waited_for(
    object_store: Any, object_store_module: Any, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    for what in ("throttle", "reset"):
        object_store.fault = object_store_module.times(2, what)
        bucket = Bucket(URI)
        bucket.put(what, path)
        object_store.fault = None
        assert bucket.read(what) == b"x" * 100
    puts = [line for line in object_store.log if line.startswith("PUT")]
    assert len(puts) == 6, "each was sent three times"


def test_an_upload_that_was_cut_off_goes_on_with_what_is_missing(
    object_store: Any, tmp_path: Path
) -> None:
    files = {f"step/{name}": tmp_path / name for name in ("a", "b", "c")}
    for name, path in files.items():
        path.write_bytes(name.encode() * 10)

    def throttle_c(request: dict[str, Any]) -> str | None:
        is_c = request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("/c")
        return "throttle" if is_c else None

    object_store.fault = throttle_c
    with pytest.raises(BucketError) as caught:
        Bucket(URI, retry_s=0.3).upload(files)
    assert str(caught.value) == f"{URI}: SlowDown: Please reduce your request rate."
    object_store.fault = None
    object_store.log.clear()
    Bucket(URI).upload(files)
    assert [line for line in object_store.log if line.startswith("PUT")] == [
        "PUT /bucket-one/team/run-1/step/c"
    ]


def test_a_token_that_has_expired_is_said_at_once(object_store: Any) -> None:
    object_store.fault = lambda _: "expired"
    with pytest.raises(BucketRefusedError) as caught:
        Bucket(URI).read("plan.json")
    assert str(caught.value) == f"{URI}: ExpiredToken: The provided token has expired."
    assert len(object_store.log) == 1, "asking again does not help"
    assert isinstance(told(URI, caught.value), StoreError)


def test_what_is_not_there(object_store: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Bucket(URI).read("plan.json")
    assert caught.value.filename == URI
    assert Bucket(URI).listed() == []
    for ask in (lambda b: b.read("x"), lambda b: b.write("x", b""), lambda b: b.listed()):
        with pytest.raises(BucketRefusedError, match="there is no bucket nobodys-bucket"):
            ask(Bucket("s3://nobodys-bucket/x"))
    with pytest.raises(FileNotFoundError):
        Bucket(URI).upload({"x": tmp_path / "gone"})


def test_a_server_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-s3-secret")
    with pytest.raises(BucketError) as caught:
        Bucket(URI, retry_s=0.2).read("x")
    said = told(URI, caught.value)
    assert isinstance(said, UnreachableError)
    assert "planted-s3-secret" not in said.message


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b-1/x/y/", ("s3", "b-1", "x/y")),
        ("gs://b-1", ("gs", "b-1", "")),
        ("az://b-1/x", ("az", "b-1", "x")),
        ("r2://b-1/x", ("r2", "b-1", "x")),
    ],
)
def test_names(uri: str, parts: tuple[str, str, str]) -> None:
    name = BucketName.of(uri)
    assert (name.scheme, name.bucket, name.prefix) == parts


@pytest.mark.parametrize("uri", ["s3:/b/x", "file:///x", "b/x", "s3://"])
def test_what_is_no_bucket(uri: str) -> None:
    with pytest.raises(ValueError, match="is no bucket"):
        BucketName.of(uri)
