"""Checks of one node, on this one: device, memory, disk, and the payload of the collectives."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ft.runtime.preflight.collectives import SWEEPS, Case, cases_of, pattern
from ft.runtime.preflight.node import (
    UnfitError,
    check_device,
    check_disk,
    check_matmul,
    memory,
)
from ft.runtime.preflight.report import Kind
from ft.runtime.preflight.table import Op

CPU = torch.device("cpu")


def test_cpu_is_fit() -> None:
    facts = check_device("cpu", 0, 2)
    assert facts["name"]
    assert {**facts, "name": ""} == {
        "index": 0,
        "name": "",
        "count": len(os.sched_getaffinity(0)),
        "total_bytes": None,
        "free_bytes": None,
    }


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_gpus_asked_of_a_torch_without_cuda_are_a_configuration_error() -> None:
    with pytest.raises(UnfitError) as caught:
        check_device("cuda", 0, 2)
    assert caught.value.kind is Kind.CONFIG
    assert str(caught.value) == (
        f"2 GPUs asked for, but this torch {torch.__version__} is built without CUDA. "
        "Use an image with a CUDA build of torch."
    )


def test_memory_is_what_the_kernel_says() -> None:
    got = memory()
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total, available = got["total_bytes"], got["available_bytes"]
    assert total is not None
    assert available is not None
    # MemTotal of /proc/meminfo and the physical pages of sysconf are the same figure.
    assert 0 < available <= total <= page_bytes * os.sysconf("SC_PHYS_PAGES")
    shm = os.statvfs("/dev/shm")
    assert got["shm_total_bytes"] == shm.f_blocks * shm.f_frsize


def test_the_product_of_two_matrices_is_exact_and_so_is_its_checksum() -> None:
    got = check_matmul("cpu", 0)
    # The matrices as `node` says: a seeded period of 65521 integers from -45 to 45, repeated row after row.
    left, right = (
        torch.randint(
            -45, 46, (65_521,), generator=torch.Generator().manual_seed(20_231 + i)
        ).repeat(5)[: 512 * 512].view(512, 512)
        for i in range(2)
    )  # fmt: skip
    product = left @ right
    assert int(product.abs().max()) < 2**24
    checksum = hashlib.sha256(product.float().numpy().tobytes()).hexdigest()
    assert {**got, "tflops": 0.0, "time_us": 0.0} == {
        "checksum": checksum,
        "tflops": 0.0,
        "time_us": 0.0,
        "size": 512,
        "dtype": "float32",
        "repeats": 5,
    }
    # 2 · 512^3 operations take between 1 µs and 3 s on any CPU.
    assert 1e-4 < got["tflops"] < 300
    assert got["tflops"] * got["time_us"] == pytest.approx(2 * 512**3 / 1e6)


def test_the_checksum_does_not_depend_on_the_order_of_the_sums() -> None:
    threads = torch.get_num_threads()
    checksums = set()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            checksums.add(check_matmul("cpu", 0)["checksum"])
    finally:
        torch.set_num_threads(threads)
    assert len(checksums) == 1


def test_a_device_that_computes_otherwise_the_second_time_is_a_bad_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiply = torch.Tensor.__matmul__
    calls = []

    def flip_one_of_the_second(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = multiply(left, right)
        calls.append(product)
        if len(calls) > 1:
            product[3, 5] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", flip_one_of_the_second)
    with pytest.raises(UnfitError) as caught:
        check_matmul("cpu", 0)
    assert caught.value.kind is Kind.WRONG
    assert str(caught.value) == (
        "cpu got 1 of 262144 elements of a matrix product otherwise the second time"
    )


def test_a_device_that_cannot_compute_is_a_bad_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be …")

    monkeypatch.setattr(torch.Tensor, "__matmul__", fail)
    with pytest.raises(UnfitError) as caught:
        check_matmul("cpu", 0)
    assert caught.value.kind is Kind.FAILED
    assert str(caught.value) == (
        "cpu failed a product of 512 x 512 matrices: CUDA error: unspecified launch failure"
    )


def test_disk_is_written_synced_and_read_back(tmp_path: Path) -> None:
    facts = check_disk(tmp_path, min_free_bytes=1)
    assert (facts["path"], facts["tested_bytes"]) == (str(tmp_path), 4 * 2**20)
    assert facts["write_s"] > 0
    assert facts["read_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_disk_with_too_little_space_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(UnfitError) as caught:
        check_disk(tmp_path, min_free_bytes=2**70)
    assert caught.value.kind is Kind.CONFIG
    message = str(caught.value)
    # 2**70 bytes are 2**40 GiB.
    assert message.startswith(f"{tmp_path} has ")
    assert " GiB free, but this run needs 1099511627776.0 GiB. Free " in message
    assert message.endswith("take a larger disk, or keep fewer checkpoints (save_total_limit).")


def test_folder_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(UnfitError) as caught:
        check_disk(tmp_path / "absent", min_free_bytes=1)
    assert caught.value.kind is Kind.CONFIG
    assert str(caught.value) == (
        f"the disk cannot be used: [Errno 2] No such file or directory: '{tmp_path}/absent'. "
        "Name a folder that exists and can be written to."
    )


def test_disk_that_gives_back_other_bytes_is_a_bad_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Callable[[Path], bytes] = Path.read_bytes

    def read_with_a_flipped_bit(path: Path) -> bytes:
        payload = bytearray(read(path))
        payload[123_456] ^= 1
        return bytes(payload)

    monkeypatch.setattr(Path, "read_bytes", read_with_a_flipped_bit)
    with pytest.raises(UnfitError) as caught:
        check_disk(tmp_path, min_free_bytes=1)
    assert caught.value.kind is Kind.WRONG
    assert str(caught.value) == (
        f"4194304 bytes written to {tmp_path} came back with another sha256"
    )
    assert list(tmp_path.iterdir()) == []


def test_disk_with_input_output_errors_is_a_bad_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnfitError) as caught:
        check_disk(tmp_path, min_free_bytes=1)
    assert caught.value.kind is Kind.FAILED
    assert str(caught.value) == "the disk cannot be used: [Errno 5] Input/output error."


def test_payload_of_one_rank() -> None:
    # ((37 i + 101·2 + 5) mod 251) for i = 0 … 6: 207, 244, 281-251, 67, 104, 141, 178.
    expected = [207.0, 244.0, 30.0, 67.0, 104.0, 141.0, 178.0]
    assert pattern([2], 0, 7, 5, CPU).tolist() == expected


def test_payload_summed_over_ranks_from_an_offset_and_beyond_its_period() -> None:
    got = pattern(range(3), 100, 1_000, 9, CPU)
    index = torch.arange(100, 1_100)
    expected = sum(((37 * index + 101 * rank + 9) % 251).float() for rank in range(3))
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.as_tensor(expected))


def test_cases_cover_every_op_with_even_and_odd_counts_in_both_places() -> None:
    pairs = list(cases_of(SWEEPS["gloo"], 2))
    assert [pair[0].count for pair in pairs if pair[0].op is Op.ALL_REDUCE] == [
        256, 1024, 4096, 16384, 65536, 262144, 1048576, 65537,
    ]  # fmt: skip
    halved = [128, 512, 2048, 8192, 32768, 131072, 524288, 65537]
    assert [pair[0].count for pair in pairs if pair[0].op is Op.ALL_GATHER] == halved
    assert [pair[0].count for pair in pairs if pair[0].op is Op.REDUCE_SCATTER] == halved
    assert pairs[8] == (
        Case(Op.ALL_GATHER, 128, in_place=False, seed=16),
        Case(Op.ALL_GATHER, 128, in_place=True, seed=17),
    )
    seeds = [case.seed for pair in pairs for case in pair]
    assert seeds == list(range(48))
    assert SWEEPS["nccl"].sizes_bytes == (2**20, 2**22, 2**24, 2**26, 2**28)
