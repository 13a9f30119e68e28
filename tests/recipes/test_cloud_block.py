"""The `cloud:` block: its types, what it says of wrong values, and that no message repeats a secret."""

from __future__ import annotations

import pytest

from ft.launcher.facts import machine_for, secrets_here
from ft.recipes.errors import Severity
from ft.recipes.facts import Machine
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.schema.base import Status, info_of
from ft.recipes.schema.cloud import CloudBlock, GpuChoice, gpu_choices
from ft.recipes.secrecy import (
    holds_a_secret,
    is_named_like_a_secret,
    is_plain,
    is_rather_a_value,
    looks_like_a_secret,
    names_a_secret,
)

WHOLE = """\
cloud:
  backend: modal
  gpu: ["H100!:8", "H200:8"]
  nodes: 2
  region: [us-east, us-west]
  cpu: 16
  memory: 128
  disk: 512.5
  store_volume: runs
  cache_volume: cache
  volumes: [{name: corpus, mount: /data}]
  timeout: 24h
  retries: 3
  secrets: [HF_TOKEN, wandb]
  env: {NCCL_DEBUG: INFO, EMPTY: ""}
  image: {apt: [git], pip: [scipy==1.15.3], commands: ["RUN make -C /opt"]}
  include: [src]
  modal: {cloud: aws, experimental_options: {a: [1, null, ""]}}
"""


def test_the_whole_block_is_read_as_it_is_written() -> None:
    normalized = normalize(loads(WHOLE))
    assert normalized.flat.cloud.cloud == CloudBlock(
        backend="modal",
        gpu=("H100!:8", "H200:8"),
        nodes=2,
        region=("us-east", "us-west"),
        cpu=16.0,
        memory=128.0,
        disk=512.5,
        store_volume="runs",
        cache_volume="cache",
        volumes=[{"name": "corpus", "mount": "/data"}],
        timeout="24h",
        retries=3,
        secrets=["HF_TOKEN", "wandb"],
        env={"NCCL_DEBUG": "INFO", "EMPTY": ""},
        image={"apt": ["git"], "pip": ["scipy==1.15.3"], "commands": ["RUN make -C /opt"]},
        include=["src"],
        modal={"cloud": "aws", "experimental_options": {"a": [1, None, ""]}},
    )
    assert normalized.problems == ()


def test_every_key_is_read_by_some_backend() -> None:
    fields = CloudBlock.model_fields
    assert [key for key in fields if info_of(fields[key]).status is Status.PLANNED] == []


BUCKET = (
    "store_bucket: expected s3://BUCKET/PREFIX, or the same with gs://, az:// or r2://; "
    "a BUCKET has 3 or more of a-z 0-9 . _ -, a letter or digit first and last"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu: [H100:8, h20?]", "gpu.1: expected NAME:COUNT such as H100:8 or cpu:2, got 'h20?'"),
        ("gpu: 8", "gpu: expected NAME:COUNT such as H100:8 or cpu:2, got 8. Quotes make it text."),
        ("gpu: []", "gpu: expected NAME:COUNT such as H100:8 or cpu:2, got []"),
        ("retries: 11", "retries: expected less than or equal to 10, got 11"),
        ("memory: 64GB", "memory: expected a number, got '64GB'"),
        ("disk: 0", "disk: expected greater than 0, got 0"),
        ("store_bucket: runs", BUCKET),
        ("store_bucket: s3://no/runs", BUCKET),
        ("store_bucket: s3://ends-so-/runs", BUCKET),
        ("volumes: [{name: a, mount: data}]", "volumes.0.mount: expected an absolute path such as /data, got 'data'"),
        ("volumes: [{mount: /data}]", "volumes.0.name: required, but not there"),
        ("image: {apt: git}", "image.apt: expected a list"),
        ("image: {dnf: [git]}", "image.dnf: unknown key."),
        ("modal: {since: 2026-01-01}",
         "modal: 2026-01-01 is neither text nor a number, true or false. Put it into quotes"),
        ("image: {commands: 'ENV HF_TOKEN=hf_abcdefghijklmnopqrstuv'}", "image.commands: expected a list"),
        ("image: {commands: [{ENV A: hf_abcdefghijklmnopqrstuv}]}", "image.commands.0: expected text"),
        ("modal: hf_abcdefghijklmnopqrstuv", "modal: expected a mapping of keys"),
        ("region: {HF: hf_abcdefghijklmnopqrstuv}", "region: expected text or a list"),
        ("store_bucket: s3://AKIAABCDEFGHIJKLMNOP:secret@bucket", BUCKET),
        ("memory_gb: 64", "memory_gb: unknown key. Did you mean `memory`?"),
        ("env: [A]", "env: expected a mapping of names to text, such as `{NCCL_DEBUG: INFO}`"),
        ("env: {NCCL-DEBUG: INFO}",
         "env.NCCL-DEBUG: expected a name of letters, digits and _ that begins with no digit"),
        ("env: {HF_TOKEN: 1234567890}", "env.HF_TOKEN: expected text. Quotes make it text."),
        ("secrets: hf_abcdefghijklmnopqrstuv", "secrets: expected a list of names, never values, such as `[HF_TOKEN]`"),
        ("secrets: {HF_TOKEN: hf_abcdefghijklmnopqrstuv}",
         "secrets: expected a list of names, never values, such as `[HF_TOKEN]`"),
        ("secrets: [{HF_TOKEN: hf_abcdefghijklmnopqrstuv}]",
         "secrets.0: expected a list of names, never values, such as `[HF_TOKEN]`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_no_secret_repeated(text: str, expected: str) -> None:
    problems = normalize(loads(f"cloud:\n  {text}\n", source="r.yml")).problems
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    assert [str(problem) for problem in errors] == [f"r.yml:2: cloud.{expected}"]


def test_what_a_gpu_asks_for() -> None:
    assert [*gpu_choices(None)] == []
    assert [*gpu_choices("cpu")] == [GpuChoice("cpu", "", 1)]
    assert [*gpu_choices(("H100!:8", "B200+:4", "A100-80GB"))] == [
        GpuChoice("H100", "!", 8), GpuChoice("B200", "+", 4), GpuChoice("A100-80GB", "", 1),
    ]  # fmt: skip
    assert GpuChoice("H100", "!", 8).named == "H100!"


def test_the_machine_is_the_first_choice() -> None:
    flat = normalize(loads("cloud: {gpu: ['H100!:8', 'H200:8'], nodes: 2}")).flat
    assert machine_for(flat) == Machine("cuda", "H100", 8, 2, bf16=True, tf32=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HF_TOKEN", True), ("hf_token", True), ("AWS_SECRET_ACCESS_KEY", True), ("API_KEYS", True),
        ("TOKENIZERS_PARALLELISM", False), ("KEYBOARD", False), ("NCCL_DEBUG", False), ("MAX_TOKENS", False),
        ("HF_TOKEN_PATH", False), ("AWS_WEB_IDENTITY_TOKEN_FILE", False), ("TOKEN_PATHS", True),
    ],
)  # fmt: skip
def test_names_that_give_a_secret_away(name: str, expected: bool) -> None:
    assert is_named_like_a_secret(name) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", True), ("sk-proj-abcdefghijklmnop1234", True),
        ("AKIAABCDEFGHIJKLMNOP", True), ("0123456789abcdef" * 2, False), ("ghp_abcdefghijklmnop1234", True),
        ("-----BEGIN PRIVATE KEY-----\nabc", True), ("as-abcdefghijklmnopqr5t", True),
        ("sk-learn-extra-foo-bar-x", False),
        ("HF_TOKEN", False), ("hf_token", False), ("huggingface-secret", False), ("hf_token_of_the_whole_group", False),
        ("INFO", False), ("", False),
    ],
)  # fmt: skip
def test_values_that_look_like_a_secret(value: str, expected: bool) -> None:
    assert looks_like_a_secret(value) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN curl https://x/?t=hf_abcdefghijklmnopqrstuv&y=1", True), ("Bearer hf_abcdefghijklmnopqrstuv;", True),
        ("https://u:hf_abcdefghijklmnopqrstuv@x", True), ("a\n-----BEGIN PRIVATE KEY-----\nb", True),
        ("sk-learn-extra-foo-bar-x==1", False), ("RUN make -j 8", False), ("", False),
    ],
)  # fmt: skip
def test_texts_that_hold_a_secret(text: str, expected: bool) -> None:
    assert holds_a_secret(text) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", True), ('""', True), ("4096", True), ("0.5", True), ("True", True), ("/data/t", True), ("$HF_TOKEN", True),
        ("`cat /t`", True), ("swordfish", False), ("1a", False),
    ],
)  # fmt: skip
def test_values_that_cannot_be_secret(value: str, expected: bool) -> None:
    assert is_plain(value) is expected


def test_forty_hex_digits_are_a_commit_unless_a_name_should_stand_there() -> None:
    assert is_rather_a_value("0123456789abcdef" * 2)
    assert not is_rather_a_value("wandb")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HF_TOKEN", True), ("my.secret-1", True), ("", False), ("A=b", False), ("a b", False), ("a" * 64, False),
        ("hf_abcdefghijklmnopqrstuv", False), ("0123456789abcdef" * 2, False),
    ],
)  # fmt: skip
def test_names_of_secrets_that_can_be_shown(text: str, expected: bool) -> None:
    assert names_a_secret(text) is expected


def test_secrets_are_looked_up_and_their_values_left() -> None:
    def of(names: str) -> dict[str, bool]:
        flat = normalize(loads(f"cloud: {{secrets: {names}}}")).flat
        return secrets_here(flat, {"A_TOKEN": "not-a-real-one", "B_TOKEN": ""})

    assert of("[kept, A_TOKEN, B_TOKEN, A_TOKEN]") == {"kept": False, "A_TOKEN": True, "B_TOKEN": False}  # fmt: skip
    assert of("[A_TOKEN=not-a-real-one, hf_abcdefghijklmnopqrstuv]") == {}
    assert secrets_here(normalize(loads("seed: 1")).flat, {}) == {}
