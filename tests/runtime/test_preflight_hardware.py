"""What the driver and the kernel say about a node: texts of nvidia-smi, limits, products of matrices."""

from __future__ import annotations

import json
import os
import resource
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ft.runtime.preflight import hardware
from ft.runtime.preflight.hardware import (
    FIELDS,
    Gpu,
    Health,
    HealthFinding,
    Limits,
    Links,
    RankFinding,
    RankMatmul,
    Remap,
    Severity,
    check_health,
    compare,
    expected_links,
    gpu_of,
    judge_gpu,
    judge_limits,
    judge_shm,
    parse_gpu,
    parse_nvlink,
    parse_remap,
    read_limits,
)
from ft.runtime.preflight.report import Kind

H100 = "NVIDIA H100 80GB HBM3"
UUID = "GPU-7a1b2c3d-0000-4000-8000-000000000003"
LINE = f"3, {UUID}, {H100}, 570.86.15, P0, 4, 0, 0x0000000000000001, 5, 5, 16, 16\n"
HEALTHY = Gpu(3, UUID, H100, "570.86.15", "P0", 4, 0, 1, 5, 5, 16, 16)
NO_REMAP = Remap(pending=False, failed=False)
ALL_LINKS = Links(18, 18)
WHO = f"GPU 3 ({H100}, {UUID})"


def nvlink(active: int, inactive: int = 0, *, gpu: int = 3, name: str = H100) -> str:
    lines = [f"GPU {gpu}: {name} (UUID: {UUID})"]
    lines += [f"\t Link {i}: 26.562 GB/s" for i in range(active)]
    lines += [f"\t Link {i}: <inactive>" for i in range(active, active + inactive)]
    return "\n".join(lines) + "\n"


def warning(message: str, kind: Kind = Kind.FAILED) -> HealthFinding:
    return HealthFinding(Severity.WARN, kind, message)


# ------------------------------------------------------------------------------------------ parsing


def test_a_line_of_the_query() -> None:
    assert parse_gpu(LINE) == HEALTHY


def test_what_a_gpu_does_not_have_is_unknown() -> None:
    line = (
        "0, GPU-1, NVIDIA GeForce RTX 3090, 535.54.03, P8, 1, [N/A], [Not Supported], 1, 4, 16, 16"
    )
    expected = Gpu(
        0, "GPU-1", "NVIDIA GeForce RTX 3090", "535.54.03", "P8", 1, None, None, 1, 4, 16, 16
    )
    assert parse_gpu(line) == expected


def test_old_names_and_missing_fields() -> None:
    fields = ("index", "uuid", "clocks_throttle_reasons.active", "memory.used")
    assert parse_gpu("1, GPU-2, 0x0000000000000048, 12", fields) == Gpu(
        1, "GPU-2", "", "", "", 12, None, 0x48, None, None, None, None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "Unable to determine the device handle for GPU0000:5F:00.0: Unknown Error\n",
        "[GPU is lost], a, b, c, d, e, f, g, h, i, j, k\n",
    ],
)
def test_other_texts_are_no_gpu(text: str) -> None:
    assert parse_gpu(text) is None


@pytest.mark.parametrize(
    ("text", "remap"),
    [
        (f"{UUID}, 0, 0\n", Remap(pending=False, failed=False)),
        (f"{UUID}, Yes, No\n", Remap(pending=True, failed=False)),
        (f"{UUID}, 1, 1\n", Remap(pending=True, failed=True)),
        (f"{UUID}, [N/A], [N/A]\n", Remap(None, None)),
        ("No devices were found\n", Remap(None, None)),
    ],
)
def test_remapped_rows(text: str, remap: Remap) -> None:
    assert parse_remap(text) == remap


@pytest.mark.parametrize(
    ("text", "links"),
    [
        (nvlink(18), {3: Links(18, 18)}),
        (nvlink(16, 2), {3: Links(16, 18)}),
        (nvlink(12, gpu=0) + nvlink(0, 12, gpu=1), {0: Links(12, 12), 1: Links(0, 12)}),
        ("GPU 0: NVIDIA L4 (UUID: GPU-1)\n", {}),
        ("GPU 0: NVIDIA L4 (UUID: GPU-1) Device does not have or support Nvlink\n", {}),
        (
            "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-2)\nNVML: Unable to retrieve NVLink information as all links are "
            "inActive\n",
            {1: Links(0, 0)},
        ),
        ("", {}),
    ],
)  # fmt: skip
def test_nvlinks(text: str, links: dict[int, Links]) -> None:
    assert parse_nvlink(text) == links


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("NVIDIA H100 80GB HBM3", 18),
        ("NVIDIA H200", 18),
        ("NVIDIA A100-SXM4-80GB", 12),
        ("NVIDIA A100-SXM4-40GB", 12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA L4", None),
    ],
)
def test_links_that_a_gpu_should_have(name: str, count: int | None) -> None:
    assert expected_links(name) == count


@pytest.mark.parametrize(
    ("local_rank", "visible", "name"),
    [
        (2, None, "2"),
        (1, "4,5", "5"),
        (0, "GPU-aaaa, GPU-bbbb", "GPU-aaaa"),
        (2, "4,5", None),
        (0, "", None),
    ],
)
def test_which_gpu_is_a_ranks_own(local_rank: int, visible: str | None, name: str | None) -> None:
    assert gpu_of(local_rank, visible) == name


# ---------------------------------------------------------------------------------------- judgement


def test_a_healthy_gpu() -> None:
    assert judge_gpu(HEALTHY, NO_REMAP, ALL_LINKS, 8) == []
    # Idle, clocks as set, power cap: all of them ordinary.
    assert judge_gpu(replace(HEALTHY, throttle=0x1 | 0x2 | 0x4), NO_REMAP, ALL_LINKS, 8) == []


def test_broken_memory_fails_the_node() -> None:
    gpu = replace(HEALTHY, ecc_uncorrected=2)
    assert judge_gpu(gpu, Remap(pending=True, failed=True), ALL_LINKS, 8) == [
        HealthFinding(
            Severity.FAIL,
            Kind.FAILED,
            f"{WHO} has counted 2 uncorrectable ECC errors since its driver was loaded: its memory is broken",
        ),
        HealthFinding(
            Severity.FAIL,
            Kind.FAILED,
            f"{WHO} could not replace a broken row of its memory: it has to be exchanged",
        ),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"throttle": 0x8}, "runs slower than it could: hardware slowdown. Cooling or power is at fault"),
        (
            {"throttle": 0x20 | 0x40 | 0x80},
            "runs slower than it could: too hot (software), too hot (hardware), power brake. Cooling or power is at "
            "fault",
        ),
        ({"pcie_gen": 3}, "is connected with PCIe 3 instead of 5: slow copies"),
        ({"pcie_width": 8}, "is connected with 8 instead of 16 PCIe lanes: slow copies"),
        (
            {"memory_used_mib": 501},
            "has 501 MiB in use by somebody else: see nvidia-smi, and end what is left of an older run",
        ),
    ],
)  # fmt: skip
def test_what_is_slow_or_full_is_a_warning(change: dict[str, int], says: str) -> None:
    gpu = replace(HEALTHY, **change)  # type: ignore[arg-type]  # Only numbers are changed.
    assert judge_gpu(gpu, NO_REMAP, ALL_LINKS, 8) == [warning(f"{WHO} {says}")]


def test_a_pending_repair_is_a_warning() -> None:
    assert judge_gpu(HEALTHY, Remap(pending=True, failed=False), ALL_LINKS, 1) == [
        warning(f"{WHO} has a broken row of memory to replace: reset it (nvidia-smi -r), or reboot")
    ]


def test_an_idle_gpu_may_take_its_pcie_link_down() -> None:
    assert judge_gpu(replace(HEALTHY, pstate="P8", pcie_gen=1), NO_REMAP, ALL_LINKS, 8) == []


def test_what_is_unknown_is_no_finding() -> None:
    unknown = Gpu(0, "", "NVIDIA L4", "", "", None, None, None, None, None, None, None)
    assert judge_gpu(unknown, Remap(None, None), None, 8) == []


@pytest.mark.parametrize(
    ("name", "links", "says"),
    [
        (H100, Links(17, 18), "17 of 18"),
        (H100, Links(0, 18), "0 of 18"),
        (H100, Links(0, 0), "0 of 18"),
        ("NVIDIA A100-SXM4-80GB", Links(11, 12), "11 of 12"),
        # A GPU whose number is not known: some work, so all should.
        ("NVIDIA RTX A6000", Links(3, 4), "3 of 4"),
        # No bridge at all is an ordinary machine.
        ("NVIDIA RTX A6000", Links(0, 4), None),
        ("NVIDIA H100 PCIe", Links(0, 12), None),
    ],
)
def test_missing_nvlinks_are_a_warning(name: str, links: Links, says: str | None) -> None:
    found = judge_gpu(replace(HEALTHY, name=name), NO_REMAP, links, 8)
    expected = (
        f"GPU 3 ({name}, {UUID}) has {says} NVLinks active: data between GPUs take a slower way"
    )
    assert found == ([warning(expected)] if says else [])


def test_one_rank_alone_needs_no_nvlink() -> None:
    assert judge_gpu(HEALTHY, NO_REMAP, Links(0, 18), 1) == []


def test_small_shared_memory_is_a_warning_for_several_ranks() -> None:
    assert judge_shm(64 * 2**20, 2) == [
        warning(
            "/dev/shm has 64 MiB for 2 ranks that share memory there. Start the container with --shm-size=8g or "
            "--ipc=host (Kubernetes: an emptyDir with medium: Memory).",
            Kind.CONFIG,
        )
    ]
    assert judge_shm(64 * 2**20, 1) == []
    assert judge_shm(2**30, 8) == []
    assert judge_shm(None, 8) == []


def test_limits_that_are_too_low_are_warnings_with_the_way_out() -> None:
    low = Limits(memlock_bytes=65536, files=256, threads=100)
    found = judge_limits(low, 4, rdma=True)
    assert {finding[:2] for finding in found} == {(Severity.WARN, Kind.CONFIG)}
    assert [finding.message for finding in found] == [
        "only 64 KiB of memory may be locked (ulimit -l), too little for RDMA. Start the container with "
        "--ulimit memlock=-1, or raise memlock in /etc/security/limits.conf.",
        "only 256 files may be open at a time (ulimit -n). Say ulimit -n 65536 first, or start the container with "
        "--ulimit nofile=65536.",
        "only 100 more processes and threads may be started, and the ranks may need 2048 (ulimit -u, pids.max). Start "
        "the container with --pids-limit=-1, or say ulimit -u unlimited first.",
    ]  # fmt: skip
    # Locked memory is for RDMA only.
    assert len(judge_limits(low, 4, rdma=False)) == 2
    assert judge_limits(Limits(None, None, None), 8, rdma=True) == []
    assert judge_limits(Limits(2**30, 1024, 2048), 4, rdma=True) == []


def test_limits_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pids.max").write_text("1100\n")
    (tmp_path / "pids.current").write_text("88\n")
    monkeypatch.setattr(hardware, "PIDS", tmp_path)
    limits = read_limits()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert limits.files == (None if soft == resource.RLIM_INFINITY else soft)
    per_user = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    assert limits.threads == (1012 if per_user == resource.RLIM_INFINITY else min(1012, per_user))
    (tmp_path / "pids.max").write_text("max\n")
    assert read_limits().threads == (None if per_user == resource.RLIM_INFINITY else per_user)


# -------------------------------------------------------------------- with a program called nvidia-smi


@pytest.fixture
def smi(tmp_path: Path) -> Smi:
    return Smi(tmp_path / "bin")


class Smi:
    """A shell script named nvidia-smi, alone on PATH."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    def answers(
        self, *, gpu: str, rows: str = f"{UUID}, 0, 0", nvlink: str = "", code: int = 0
    ) -> None:
        self.runs(
            'case "$*" in\n'
            f'  *--query-gpu=*) printf %s "{gpu}"; exit {code} ;;\n'
            f'  *--query-remapped-rows=*) printf %s "{rows}" ;;\n'
            f'  nvlink*) printf %s "{nvlink}" ;;\n'
            "esac\n"
        )

    def runs(self, script: str) -> None:
        program = self.folder / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$*" >>"{self.folder}/calls"\n{script}')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[str]:
        return sorted((self.folder / "calls").read_text().splitlines())

    def health(self, **env: str) -> Health:
        """Of the second rank of eight, which speaks for its GPU only."""
        return check_health("cuda", 1, 8, {"PATH": str(self.folder), **env})


def test_a_rank_asks_about_its_own_gpu(smi: Smi) -> None:
    smi.answers(gpu=LINE, nvlink=nvlink(18))
    health = smi.health(CUDA_VISIBLE_DEVICES="2,3")
    assert health.findings == []
    assert health.facts == {
        "nvidia_smi": "ok",
        "gpu": {
            "index": 3,
            "uuid": UUID,
            "name": H100,
            "driver": "570.86.15",
            "pstate": "P0",
            "memory_used_mib": 4,
            "ecc_uncorrected": 0,
            "throttle": 1,
            "pcie_gen": 5,
            "pcie_gen_max": 5,
            "pcie_width": 16,
            "pcie_width_max": 16,
            "remap_pending": False,
            "remap_failed": False,
            "nvlinks_active": 18,
            "nvlinks_expected": 18,
        },
    }
    assert json.loads(json.dumps(health.facts)) == health.facts
    assert smi.calls == [
        f"-i 3 --query-gpu={','.join(FIELDS)} --format=csv,noheader,nounits",
        "-i 3 --query-remapped-rows=gpu_uuid,remapped_rows.pending,remapped_rows.failure --format=csv,noheader",
        "nvlink -s -i 3",
    ]


def test_a_bad_gpu_is_found(smi: Smi) -> None:
    smi.answers(gpu=LINE.replace("P0, 4, 0", "P0, 4, 1"), nvlink=nvlink(16, 2))
    assert [(finding.severity, finding.kind) for finding in smi.health().findings] == [
        (Severity.FAIL, Kind.FAILED),
        (Severity.WARN, Kind.FAILED),
    ]


def test_fields_that_a_driver_does_not_know_are_asked_by_their_old_name_or_left_out(
    smi: Smi,
) -> None:
    line = f"3, {UUID}, {H100}, 470.57.02, P0, 4, 0x0000000000000004, 5, 5, 16, 16"
    smi.runs(
        'case "$*" in\n'
        "  *clocks_event_reasons.active*)\n"
        "    echo 'Field \"clocks_event_reasons.active\" is not a valid field to query.'; exit 2 ;;\n"
        "  *ecc.errors*)\n"
        "    echo 'Field \"ecc.errors.uncorrected.volatile.total\" is not a valid field to query.'; exit 2 ;;\n"
        f'  *--query-gpu=*) echo "{line}" ;;\n'
        "esac\n"
    )
    health = smi.health(CUDA_VISIBLE_DEVICES="0,3")
    assert health.findings == []
    gpu = health.facts["gpu"]
    assert (gpu["ecc_uncorrected"], gpu["throttle"], gpu["driver"]) == (None, 4, "470.57.02")


@pytest.mark.parametrize(
    "said",
    [
        "Unable to determine the device handle for GPU0000:5F:00.0: Unknown Error",
        "Unable to determine the device handle for GPU 0000:5F:00.0: GPU is lost.  Reboot the system to recover",
    ],
)
def test_a_gpu_that_fell_off_the_bus_fails_the_node(smi: Smi, said: str) -> None:
    smi.answers(gpu=said, code=15)
    health = smi.health()
    assert health.findings == [
        HealthFinding(
            Severity.FAIL,
            Kind.FAILED,
            f"GPU 1 does not answer its driver any more: {said}",
        )
    ]
    assert health.facts == {"nvidia_smi": f"unknown: {said}"}


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        ("No devices were found", "unknown: No devices were found"),
        ("", "unknown: an empty answer"),
    ],
)
def test_other_answers_are_unknown_and_no_failure(smi: Smi, said: str, fact: str) -> None:
    smi.answers(gpu=said, code=6)
    assert smi.health() == Health([], {"nvidia_smi": fact})


def test_without_nvidia_smi_or_without_a_gpu_nothing_is_known(tmp_path: Path, smi: Smi) -> None:
    env = {"PATH": str(tmp_path)}
    assert check_health("cuda", 1, 8, env) == Health(
        [], {"nvidia_smi": "unknown: there is no nvidia-smi"}
    )
    smi.answers(gpu=LINE)
    assert smi.health(CUDA_VISIBLE_DEVICES="3") == Health(
        [], {"nvidia_smi": "unknown: there is no GPU for this rank in CUDA_VISIBLE_DEVICES"}
    )


def test_a_driver_that_hangs_is_not_waited_for(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "SMI_TIMEOUT_S", 0.5)
    smi.runs("kill -STOP $$\n")
    start = time.monotonic()
    health = smi.health()
    assert time.monotonic() - start < 5
    assert health.findings == [
        warning("nvidia-smi gives no answer within 0.5 s about GPU 1: its driver is stuck or busy")
    ]
    assert health.facts == {"nvidia_smi": "unknown: no answer within 0.5 s"}


def test_a_program_that_cannot_be_started_is_unknown(smi: Smi) -> None:
    program = smi.folder / "nvidia-smi"
    program.write_text("#!/nowhere/sh\n")
    program.chmod(0o755)
    health = smi.health()
    assert health.findings == []
    assert health.facts["nvidia_smi"].startswith("unknown: [Errno 2] No such file or directory")


def test_the_first_rank_speaks_for_the_node() -> None:
    env = {**os.environ, "TORCH_DISTRIBUTED_DEBUG": "DETAIL", "NCCL_P2P_DISABLE": "1"}
    first, second = (check_health("cpu", rank, 2, env) for rank in range(2))
    assert second == Health([], {})
    host = first.facts["host"]
    assert set(host) == {
        "memlock_bytes", "files", "threads", "shm_total_bytes", "rdma_devices", "leftovers",
    }  # fmt: skip
    assert host["leftovers"] == ["TORCH_DISTRIBUTED_DEBUG"]
    assert first.findings[0] == warning(
        "TORCH_DISTRIBUTED_DEBUG=DETAIL makes all ranks compare notes before every collective. "
        "unset TORCH_DISTRIBUTED_DEBUG.",
        Kind.CONFIG,
    )


# ------------------------------------------------------------------------------ products of matrices


def products(*values: tuple[str, float], device: str = H100) -> list[RankMatmul]:
    return [
        RankMatmul(rank, f"node-{rank // 4}", device, checksum, tflops)
        for rank, (checksum, tflops) in enumerate(values)
    ]


def test_ranks_that_agree() -> None:
    assert compare(products(("a", 700), ("a", 690), ("a", 500))) == []
    assert compare(products(("a", 700))) == []
    assert compare([]) == []


def test_the_minority_computes_wrong() -> None:
    assert compare(products(("a", 700), ("a", 690), ("b", 695), ("a", 700))) == [
        RankFinding(
            2,
            "node-0",
            Severity.FAIL,
            Kind.WRONG,
            "the product of the same two matrices came out otherwise than on 3 other ranks with a "
            f"{H100}: it computes wrong",
        )
    ]


def test_without_a_majority_all_are_named() -> None:
    found = compare(products(("a", 700), ("b", 690)))
    says = (
        f"the product of the same two matrices came out otherwise on ranks 0, 1 ({H100} each), and no majority tells "
        "who is right"
    )
    assert found == [
        RankFinding(rank, "node-0", Severity.FAIL, Kind.WRONG, says) for rank in range(2)
    ]


def test_two_wrong_ranks_of_five() -> None:
    found = compare(products(("a", 1), ("b", 1), ("a", 1), ("c", 1), ("a", 1)))
    assert [(finding.rank, finding.kind) for finding in found] == [
        (1, Kind.WRONG),
        (3, Kind.WRONG),
    ]


def test_different_devices_are_not_compared() -> None:
    assert compare([*products(("a", 700)), *products(("b", 300), device="NVIDIA L4")]) == []


def test_a_straggler_is_a_warning() -> None:
    # The median of 700, 690, 400, 710 is 695; 0.7 of it are 486.5.
    assert compare(products(("a", 700), ("a", 690), ("a", 400), ("a", 710))) == [
        RankFinding(
            2,
            "node-0",
            Severity.WARN,
            Kind.FAILED,
            f"it computes with 400 TFLOP/s, the median of 4 ranks with a {H100} is 695: every step waits for it",
        )
    ]
    assert compare(products(("a", 700), ("a", 690), ("a", 487), ("a", 710))) == []


def test_wrong_ranks_come_before_slow_ones() -> None:
    found = compare(products(("a", 100), ("a", 700), ("a", 700), ("b", 700)))
    assert [(finding.rank, finding.severity) for finding in found] == [
        (3, Severity.FAIL),
        (0, Severity.WARN),
    ]
