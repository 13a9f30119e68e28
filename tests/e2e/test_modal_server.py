"""The loopback control plane of Modal against the unmodified client: what our launcher will rely on, run for real."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

# In one process and in their order: two tests count requests.
pytestmark = [pytest.mark.e2e, pytest.mark.modal, pytest.mark.xdist_group("modal_server")]

SERVER = Path(__file__).parent / "modal_server"
SECRET = "hunter2hunter2"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"modal_server_{name}", SERVER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


harness = _load("harness")
wait_for = harness.wait_for


# One server for a session: the client of a process keeps to the address that it saw first, and tests of other files may
# run in between.
@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if importlib.util.find_spec("modal") is None:
        pytest.fail("modal is not installed here: pip install -e '.[modal]'")
    with pytest.MonkeyPatch.context() as patch:
        # No secret of the host may reach a container.
        patch.setenv("SAMPLE_HOST", "secret of the host")
        server = harness.server(tmp_path_factory.mktemp("modal") / "state")
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(SERVER / "sample"))
        yield server
        server.stop()


@pytest.fixture(scope="session")
def sample(loopback: Any) -> Any:
    """The sample app, deployed."""
    module = importlib.import_module("sample_app")
    module.app.deploy()
    return module


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def named(name: str) -> Any:
    import modal

    return modal.Function.from_name("sample", name)


def started(loopback: Any, call: Any) -> dict[str, Any]:
    """The container that works on a call."""
    (item,) = wait_for(
        lambda: [i for i in loopback.call(call.object_id)["inputs"] if i["state"] == "RUNNING"]
    )
    return next(c for c in loopback.state()["containers"] if c["id"] == item["containers"][0])


# Define.


def test_an_ephemeral_app_runs_and_its_requests_are_on_record(loopback: Any, sample: Any) -> None:
    short = importlib.import_module("sample_short")
    with short.app.run():
        assert short.add.remote(2, 3) == 5
    (created,) = [r for r in loopback.requests("AppCreate") if r["description"] == "short"]
    assert created == {
        "description": "short",
        "appState": "APP_STATE_EPHEMERAL",
        "tags": {"run": "r7"},
    } | {key: value for key, value in created.items() if key == "environmentName"}
    (request,) = [
        r
        for r in loopback.requests("FunctionCreate")
        if r.get("function", {}).get("timeoutSecs") == 7200
    ]
    function = request["function"]
    assert function["resources"]["gpuConfig"] == {"count": 2, "gpuType": "H100"}
    assert function["retryPolicy"] == {
        "backoffCoefficient": 2.0, "initialDelayMs": 2000, "maxDelayMs": 30000, "retries": 5,
    }  # fmt: skip
    assert function["cloudProviderStr"] == "gcp"
    assert function["schedulerPlacement"]["regions"] == ["eu"]
    (mount,) = function["volumeMounts"]
    assert (mount["mountPath"], mount["allowBackgroundCommits"]) == ("/data", True)
    state = next(a for a in loopback.state()["apps"] if a["name"] == "short")
    assert state["state"] == 5, "an ephemeral app stops with its client"


def test_image_layers_are_recorded_and_each_log_says_so(
    loopback: Any, sample: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    import modal

    image = (
        modal.Image.from_registry("debian:12", add_python="3.11")
        .apt_install("git")
        .run_commands("echo layered")
    )
    with modal.enable_output(), modal.App("layers").run() as app:
        image.build(app)
    shown = capfd.readouterr().out
    assert "build steps are recorded and not executed" in shown
    assert "RUN echo layered" in shown
    commands = [
        c for r in loopback.requests("ImageGetOrCreate") for c in r["image"]["dockerfileCommands"]
    ]
    assert (
        "RUN pip install torch==2.9.0" in commands
        or "RUN python -m pip install torch==2.9.0" in commands
    )
    assert "ENV SAMPLE_SETTING='two words'" in commands


def test_a_failed_build_is_an_error_of_the_client(loopback: Any) -> None:
    import modal

    loopback.fault("fail_build", match="apt-get install -y no-such-package")
    image = modal.Image.debian_slim("3.11").run_commands("apt-get install -y no-such-package")
    with (
        modal.App("fails").run() as app,
        pytest.raises(modal.exception.ImageBuildError, match="no-such-package"),
    ):
        image.build(app)


def test_the_container_has_uploaded_files_secrets_and_the_image_only(
    loopback: Any, sample: Any
) -> None:
    if not loopback.ready["isolated"]:
        pytest.fail("this machine allows no namespaces: `unshare -m` and `unshare -Um` both fail")
    seen = named("look").remote(
        ["SAMPLE_TOKEN", "SAMPLE_SETTING", "MODAL_TOKEN_SECRET", "MODAL_ENVIRONMENT", "HOME"]
    )
    assert seen == {
        "environment": {
            "SAMPLE_TOKEN": SECRET, "SAMPLE_SETTING": "two words", "MODAL_TOKEN_SECRET": None,
            "MODAL_ENVIRONMENT": "main", "HOME": "/root",
        },
        "root": ["sample_app.py", "sample_helper.py"],
        "answer": 42,
        "host": False,
    }  # fmt: skip


def test_a_forgotten_module_is_not_there(loopback: Any) -> None:
    broken = importlib.import_module("sample_broken")
    with broken.app.run(), pytest.raises(ModuleNotFoundError, match="sample_forgotten"):
        broken.use.remote()
    starts = [c for c in loopback.state()["containers"] if c["function"] == "use"]
    assert len(starts) == 3, "a container that cannot start is started three times"


def test_secrets_are_checked_and_never_on_record(loopback: Any, sample: Any) -> None:
    import modal

    made = loopback.modal("secret", "create", "from-cli", "FROM_CLI=swordfish-swordfish")
    assert made.returncode == 0, made.stderr
    assert "from-cli" in loopback.modal("secret", "list").stdout
    modal.Secret.from_name("from-cli", required_keys=["FROM_CLI"]).hydrate()
    with pytest.raises(modal.exception.NotFoundError, match="has no key OTHER"):
        modal.Secret.from_name("from-cli", required_keys=["OTHER"]).hydrate()
    with pytest.raises(modal.exception.NotFoundError, match="no-secret"):
        modal.Secret.from_name("no-secret").hydrate()
    masked = [r["envDict"] for r in loopback.requests("SecretGetOrCreate") if "envDict" in r]
    assert {"FROM_CLI": "***"} in masked
    assert {"SAMPLE_TOKEN": "***"} in masked
    record = (loopback.state_folder / "requests.jsonl").read_text()
    assert "swordfish-swordfish" not in record
    assert SECRET not in record


def test_a_secret_in_a_dockerfile_is_marked(loopback: Any, sample: Any) -> None:
    import modal

    with modal.App("leaky").run() as app:
        modal.Image.debian_slim("3.11").env({"TOKEN": SECRET}).build(app)
    assert [r for r in loopback.records("ImageGetOrCreate") if r.get("leak")]
    assert SECRET not in (loopback.state_folder / "requests.jsonl").read_text()


def test_deployed_apps_are_found_tagged_and_replaced(loopback: Any, sample: Any) -> None:
    import modal

    app = modal.App.lookup("sample")
    assert app.get_tags() == {"run": "r1"}
    app.set_tags({"run": "r2"})
    assert app.get_tags() == {"run": "r2"}
    with pytest.raises(modal.exception.NotFoundError):
        modal.Function.from_name("sample", "no_such_function").hydrate()
    before = named("add")
    before.hydrate()
    sample.app.deploy()
    after = named("add")
    after.hydrate()
    assert before.object_id == after.object_id, "a new version keeps the ids of its functions"
    assert next(a["version"] for a in loopback.state()["apps"] if a["name"] == "sample") == 2


# Call.


def test_results_and_exceptions_come_back(loopback: Any, sample: Any) -> None:
    import modal

    assert named("add").remote(3, 4) == 7
    assert list(named("add").map(range(6))) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(sample.OwnError, match="on purpose"):
        named("own_error").remote()
    with pytest.raises(modal.exception.RemoteError, match="exit code 7"):
        named("crash").remote(7)


def test_a_call_is_found_again_by_another_process(loopback: Any, sample: Any) -> None:
    script = "import modal, sys; print(modal.FunctionCall.from_id(sys.argv[1]).get())"
    call = named("add").spawn(20, 22)
    command = [sys.executable, "-c", script, call.object_id]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "42"
    )


def test_a_detached_app_outlives_its_killed_client(
    loopback: Any, sample: Any, key: str, tmp_path: Path
) -> None:
    import modal

    script = tmp_path / "launcher.py"
    script.write_text(
        "import sys, time, sample_app\n"
        "with sample_app.app.run(detach=True):\n"
        f"    print(sample_app.nap.spawn({key!r}, 1.5).object_id, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SERVER / "sample")}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as launcher:
        assert launcher.stdout is not None
        call = modal.FunctionCall.from_id(launcher.stdout.readline().strip()).hydrate()
        started(loopback, call)
        launcher.send_signal(signal.SIGKILL)
    assert call.get(timeout=20) == "rested"


def test_polling_unknown_and_taken_results(loopback: Any, sample: Any, key: str) -> None:
    import modal

    call = named("nap").spawn(key, 0.8)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    assert call.get(timeout=20) == "rested"
    assert call.get(timeout=0) == "rested", "a spawned call keeps its result"
    with pytest.raises(modal.exception.NotFoundError):
        modal.FunctionCall.from_id("fc-nosuchcall").get(timeout=0)


def test_large_arguments_and_results_travel_as_blobs(loopback: Any, sample: Any) -> None:
    assert named("large").remote(3 << 20) == bytes(range(256)) * (3 << 12)
    call = named("look").spawn(["x" * 20_000])
    assert call.get(timeout=20)["answer"] == 42
    assert loopback.requests("BlobCreate")


def test_functions_call_functions_and_a_chain_goes_on_by_itself(
    loopback: Any, sample: Any, key: str
) -> None:
    import modal

    assert named("call_another").remote(5) == 15
    assert named("segment").spawn(key, 1, 3).get(timeout=20) == "segment 1"
    second = wait_for(lambda: sample.claims.get(f"{key}:id:2"))
    assert modal.FunctionCall.from_id(second).get(timeout=20) == "segment 2"
    third = wait_for(lambda: sample.claims.get(f"{key}:id:3"))
    assert modal.FunctionCall.from_id(third).get(timeout=20) == "segment 3"
    assert loopback.call(third)["parent"], "the server knows which input spawned it"


def test_options_make_a_variant_with_containers_of_its_own(loopback: Any, sample: Any) -> None:
    variant = named("add").with_options(timeout=77, gpu="L4", secrets=[])
    assert variant.remote(1, 1) == 2
    bound = loopback.requests("FunctionBindParams")[-1]["functionOptions"]
    assert bound["timeoutSecs"] == 77
    assert bound["resources"]["gpuConfig"]["gpuType"] == "L4"
    assert [c["gpu"] for c in loopback.state()["containers"] if c["function"] == "add"][
        -1
    ] == "L4:1"


def test_of_a_list_of_gpus_one_is_granted(loopback: Any, sample: Any) -> None:
    assert named("on_gpu").remote() == "ran"
    request = next(r for r in loopback.requests("FunctionCreate") if "functionData" in r)
    ranked = [
        f["function"]["resources"]["gpuConfig"] for f in request["functionData"]["rankedFunctions"]
    ]
    assert ranked == [{"count": 1, "gpuType": "H100"}, {"count": 4, "gpuType": "A100-80GB"}]
    gpus = [c["gpu"] for c in loopback.state()["containers"] if c["function"] == "on_gpu"]
    assert gpus == ["H100:1"]
    loopback.grant(function="on_gpu", gpu="A100-80GB")
    sample.app.deploy()
    wait_for(
        lambda: (
            not any(c["alive"] for c in loopback.state()["containers"] if c["function"] == "on_gpu")
        )
    )
    assert named("on_gpu").remote() == "ran"
    assert [c["gpu"] for c in loopback.state()["containers"] if c["function"] == "on_gpu"][
        -1
    ] == "A100-80GB:4"


def test_a_claim_has_one_winner(loopback: Any, sample: Any, key: str) -> None:
    import modal

    assert sample.claims.put(key, "first", skip_if_exists=True) is True
    assert sample.claims.put(key, "second", skip_if_exists=True) is False
    assert sample.claims[key] == "first"
    assert key in sample.claims
    assert sample.claims.pop(key) == "first"
    assert key not in sample.claims
    with modal.Dict.ephemeral() as scratch, modal.Queue.ephemeral() as queue:
        scratch.update({"a": 1, "b": 2})
        assert (scratch.len(), sorted(scratch.items())) == (2, [("a", 1), ("b", 2)])
        queue.put_many([1, 2, 3])
        assert (queue.len(), queue.get(), queue.get_many(5)) == (3, 1, [2, 3])


def test_two_clustered_containers_meet_and_rank_0_answers(loopback: Any, sample: Any) -> None:
    reply = named("cluster").remote()
    assert reply["rank"] == 0
    assert len(set(reply["ips"])) == 2
    assert reply["ids"] == 2
    ranks = [c["rank"] for c in loopback.state()["containers"] if c["function"] == "cluster"]
    assert sorted(ranks) == [0, 1]


# Fail.


def test_the_server_retries_by_the_policy(loopback: Any, sample: Any, key: str) -> None:
    call = named("fail_twice").spawn(key)
    assert call.get(timeout=20) == 3
    (item,) = loopback.call(call.object_id)["inputs"]
    assert (item["attempts"], item["retry_count"]) == (3, 2)


def test_a_timeout_is_not_a_timeout_of_waiting(loopback: Any, sample: Any) -> None:
    import modal

    with pytest.raises(modal.exception.FunctionTimeoutError, match="timeout of 1s"):
        named("too_slow").spawn().get(timeout=20)


def test_a_timeout_can_be_ordered(loopback: Any, sample: Any, key: str) -> None:
    import modal

    call = named("nap").spawn(key)
    wait_for(lambda: sample.claims.get(key))
    loopback.fault("timeout", call=call.object_id)
    with pytest.raises(modal.exception.FunctionTimeoutError):
        call.get(timeout=20)


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_a_cancel_at_once_is_not_lost(loopback: Any, sample: Any, delay_s: float) -> None:
    import modal

    call = named("rest").spawn()
    time.sleep(delay_s)  # The race between a cancel and the start of the input, at two points.
    call.cancel()
    with pytest.raises(modal.exception.RemoteError, match="cancelled"):
        call.get(timeout=25)


def test_a_running_call_sees_its_cancel(loopback: Any, sample: Any, key: str) -> None:
    import modal

    call = named("nap").spawn(key)
    wait_for(lambda: sample.claims.get(key))
    call.cancel()
    with pytest.raises(modal.exception.RemoteError, match="cancelled"):
        call.get(timeout=20)
    assert sample.claims[key] == "InputCancellation"


def test_cancel_can_end_the_container(loopback: Any, sample: Any, key: str) -> None:
    import modal

    call = named("nap").spawn(key)
    wait_for(lambda: sample.claims.get(key))
    container = started(loopback, call)
    call.cancel(terminate_containers=True)
    with pytest.raises(modal.exception.RemoteError, match="cancelled"):
        call.get(timeout=20)
    wait_for(
        lambda: (
            not next(
                c["alive"] for c in loopback.state()["containers"] if c["id"] == container["id"]
            )
        )
    )
    assert sample.claims[key] == "KeyboardInterrupt"


def test_a_preempted_run_resumes_from_what_it_committed(
    loopback: Any, sample: Any, key: str
) -> None:
    call = named("train").spawn(key, 6, stop_at=3)
    wait_for(lambda: sample.claims.get(key))
    loopback.fault("preempt", call=call.object_id, grace_s=5)
    assert call.get(timeout=20) == {"start": 3, "end": 6}
    (item,) = loopback.call(call.object_id)["inputs"]
    assert (item["attempts"], item["restarts"], item["retry_count"]) == (2, 1, 0)


def test_a_lost_machine_costs_no_retry_and_a_crash_does(
    loopback: Any, sample: Any, key: str
) -> None:
    import modal

    call = named("train").spawn(key, 4, stop_at=2)
    wait_for(lambda: sample.claims.get(key))
    loopback.fault("lose_machine", call=call.object_id)
    assert call.get(timeout=20) == {"start": 2, "end": 4}
    call = named("nap").spawn(key)
    started(loopback, call)
    loopback.fault("crash", call=call.object_id)
    with pytest.raises(modal.exception.RemoteError, match="exit code 137"):
        call.get(timeout=20)


def test_a_cluster_falls_with_one_rank(loopback: Any, sample: Any) -> None:
    import modal

    with pytest.raises(modal.exception.RemoteError, match="exit code 3"):
        named("cluster").remote(1)


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_reply_makes_no_second_call(
    loopback: Any, sample: Any, key: str, times: int
) -> None:
    before = len(loopback.state()["calls"])
    loopback.fault("lose_reply", rpc="FunctionMap", times=times)
    assert named("add").remote(1, 1) == 2
    assert len(loopback.state()["calls"]) == before + 1
    tries = [r["key"] for r in loopback.records("FunctionMap")][-times - 1 :]
    assert len(set(tries)) == 1
    loopback.fault("lose_reply", rpc="DictUpdate")
    assert sample.claims.put(key, "mine", skip_if_exists=True) is True, (
        "a retry of the winner still wins"
    )


def test_a_slow_reply_is_waited_for(loopback: Any, sample: Any) -> None:
    loopback.fault("slow_reply", rpc="FunctionMap", seconds=0.5)
    before = time.monotonic()
    assert named("add").remote(1, 1) == 2
    assert time.monotonic() - before > 0.5


def test_what_is_not_there_says_its_name(loopback: Any) -> None:
    shown = loopback.modal("token", "info")
    assert shown.returncode
    assert "does not implement TokenInfoGet" in shown.stdout + shown.stderr
    assert loopback.requests("TokenInfoGet")


# Volumes.


def test_files_go_into_a_volume_and_come_back(loopback: Any, tmp_path: Path) -> None:
    import modal

    content = os.urandom(9 << 20) + bytes(1000)  # Two blocks; the second ends in zeros.
    volume = modal.Volume.from_name("files", create_if_missing=True, version=2)
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(content), "models/weights.bin")
        batch.put_file(io.BytesIO(b"hello"), "note.txt")
    assert b"".join(volume.read_file("models/weights.bin")) == content
    assert {e.path: e.type.name for e in volume.listdir("/", recursive=True)} == {
        "models": "DIRECTORY", "models/weights.bin": "FILE", "note.txt": "FILE",
    }  # fmt: skip
    with pytest.raises(FileExistsError), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"other"), "note.txt")
    volume.remove_file("note.txt")
    with pytest.raises(FileNotFoundError):
        list(volume.read_file("note.txt"))
    local = tmp_path / "local.txt"
    local.write_text("from the command line")
    assert loopback.modal("volume", "put", "files", str(local), "cli.txt").returncode == 0
    assert "cli.txt" in loopback.modal("volume", "ls", "files").stdout
    assert (
        loopback.modal("volume", "get", "files", "cli.txt", str(tmp_path / "back.txt")).returncode
        == 0
    )
    assert (tmp_path / "back.txt").read_text() == "from the command line"


def test_each_container_works_on_its_own_copy(loopback: Any, sample: Any, key: str) -> None:
    assert named("read").remote(key, fresh=False) is None
    assert named("write").remote(key, "one") == "fine"
    assert named("read").remote(key, fresh=False) is None, "a warm container sees what it saw"
    assert named("read").remote(key, fresh=True) == "one"
    assert b"".join(sample.volume.read_file(key)) == b"one"
    assert "open files" in named("write").remote(key, "two", hold_open=True)


def test_an_ordered_commit_fails_and_the_next_one_works(
    loopback: Any, sample: Any, key: str
) -> None:
    loopback.fault("fail_commit", volume="checkpoints")
    assert "this commit fails" in named("write").remote(key, "one")
    with pytest.raises(FileNotFoundError):
        list(sample.volume.read_file(key))
    assert named("write").remote(key, "two") == "fine"
    assert b"".join(sample.volume.read_file(key)) == b"two"


# Watch.


def test_logs_stream_tail_and_filter(loopback: Any, sample: Any, key: str) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    call = named("add").spawn(30, 12)
    assert [e.message for e in call.logs.stream(timeout=10)] == [
        "adding 30 and 12\n",
        "a warning\n",
    ]
    assert [e.message for e in call.logs.tail(5, source="stderr")] == ["a warning\n"]
    fetched = [e.message for e in call.logs.fetch(since=began)]
    assert sorted(fetched) == ["a warning\n", "adding 30 and 12\n"]
    assert (
        list(call.logs.fetch(since=began - timedelta(hours=2), until=began - timedelta(hours=1)))
        == []
    )
    shown = loopback.modal("app", "logs", "sample", "--tail", "20", "--timestamps")
    assert "adding 30 and 12" in shown.stdout, shown.stderr


def test_the_command_line_lists_and_stops(loopback: Any) -> None:
    import modal

    short = importlib.import_module("sample_short")
    short.app.deploy(name="stopped")
    call = short.add.spawn(1, 1, 30.0)
    container = started(loopback, call)
    assert container["id"] in loopback.modal("container", "list").stdout
    listed = loopback.modal("app", "list").stdout
    (app_id,) = re.findall(r"(ap-\w{22}).*stopped .*deployed", listed)
    shown = loopback.modal("app", "stop", app_id, "--yes")
    assert shown.returncode == 0, shown.stderr
    with pytest.raises(modal.exception.RemoteError, match="stopped"):
        call.get(timeout=20)
    wait_for(
        lambda: (
            not next(
                c["alive"] for c in loopback.state()["containers"] if c["id"] == container["id"]
            )
        )
    )
    assert loopback.modal("app", "logs", app_id, "-f").stdout.count("napping") == 1


def test_modal_run_streams_a_local_entrypoint(loopback: Any, sample: Any) -> None:
    shown = loopback.modal("run", str(SERVER / "sample" / "sample_app.py"), "--x", "5")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "result 7" in shown.stdout
    assert "adding 5 and 2" in shown.stdout


def test_a_stopped_container_hands_its_input_on(loopback: Any, sample: Any, key: str) -> None:
    call = named("train").spawn(key, 3, stop_at=1)
    wait_for(lambda: sample.claims.get(key))
    container = started(loopback, call)
    assert loopback.modal("container", "stop", container["id"], "--yes").returncode == 0
    assert call.get(timeout=20) == {"start": 1, "end": 3}


# The server itself.


def test_it_ends_with_all_its_containers(loopback: Any, tmp_path: Path, key: str) -> None:
    other = harness.Loopback.start(tmp_path / "state")
    script = f"import sample_app, sys\nwith sample_app.app.run(detach=True):\n sample_app.nap.spawn({key!r})\n"
    environment = os.environ | other.environment | {"PYTHONPATH": str(SERVER / "sample")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    pids = wait_for(lambda: [c["pid"] for c in other.state()["containers"] if c["pid"]])
    other.stop()
    assert other.process.returncode == 0
    wait_for(lambda: not any(Path("/proc", str(pid)).exists() for pid in pids))
