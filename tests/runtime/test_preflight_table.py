"""Formulas and table of preflight against what nccl-tests documents and prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ft.runtime.preflight.table import (
    Half,
    Op,
    Row,
    algbw_gbps,
    average_busbw_gbps,
    busbw_gbps,
    count_of,
    fixed_width,
    merge,
    render,
    size_of,
)


def test_algorithm_bandwidth_is_size_over_time_in_1e9_bytes() -> None:
    # 48e9 B in 1 s, and 1 MiB in 10 us: 1048576 B / 1e-5 s = 104.8576e9 B/s.
    assert algbw_gbps(48_000_000_000, 1_000_000.0) == 48.0
    assert algbw_gbps(2**20, 10.0) == pytest.approx(104.8576, rel=1e-12)


@pytest.mark.parametrize(
    ("op", "expected_by_ranks"),
    [
        # algbw 48 times 2(n-1)/n
        (Op.ALL_REDUCE, {1: None, 2: 48.0, 3: 64.0, 4: 72.0, 8: 84.0, 16: 90.0}),
        # algbw 48 times (n-1)/n
        (Op.ALL_GATHER, {1: None, 2: 24.0, 3: 32.0, 4: 36.0, 8: 42.0, 16: 45.0}),
        (Op.REDUCE_SCATTER, {1: None, 2: 24.0, 3: 32.0, 4: 36.0, 8: 42.0, 16: 45.0}),
    ],
)
def test_bus_bandwidth(op: Op, expected_by_ranks: dict[int, float | None]) -> None:
    got = {n: busbw_gbps(op, 48_000_000_000, 1_000_000.0, n) for n in expected_by_ranks}
    assert got == expected_by_ranks


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Op.ALL_REDUCE, {1: 262144, 2: 262144, 3: 262144, 4: 262144, 8: 262144, 16: 262144}),
        # 3 ranks: 1048576 // 3 = 349525 B, rounded down to 16 B is 349520 B, 87380 elements.
        (Op.ALL_GATHER, {1: 262144, 2: 131072, 3: 87380, 4: 65536, 8: 32768, 16: 16384}),
        (Op.REDUCE_SCATTER, {1: 262144, 2: 131072, 3: 87380, 4: 65536, 8: 32768, 16: 16384}),
    ],
)
def test_elements_per_rank_of_1_mib(op: Op, expected: dict[int, int]) -> None:
    assert {n: count_of(op, 2**20, n) for n in expected} == expected


def test_size_column_is_the_buffer_of_a_rank_or_the_total() -> None:
    assert [size_of(op, 87380, 3) for op in Op] == [349520, 1048560, 1048560]
    assert [size_of(op, 1_000_003, 8) for op in Op] == [4_000_012, 32_000_096, 32_000_096]


@pytest.mark.parametrize(
    ("value", "width", "expected"),
    [
        (0.0, 6, "  0.00"),
        (0.004, 6, "  0.00"),
        (0.999, 6, "  1.00"),
        (480.25, 6, "480.25"),
        (1234.56, 6, "1234.6"),
        (12345.6, 6, " 12346"),
        (123456.0, 6, "123456"),
        (1234567.0, 6, " 1e+06"),
        (9.5, 7, "   9.50"),
        (9999.99, 7, "9999.99"),
        (12345.67, 7, "12345.7"),
        (1234567.0, 7, "1234567"),
        (12345678.0, 7, "1.2e+07"),
    ],
)
def test_numbers_keep_their_column(value: float, width: int, expected: str) -> None:
    assert fixed_width(value, width) == expected


TWO_RANKS = """\
# all_reduce
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
     1048576        262144     float     sum      -1    20.00   52.43   52.43       0    10.00  104.86  104.86       0
   268435456      67108864     float     sum      -1  12345.7   21.74   21.74       3  1000.00  268.44  268.44       0
# Out of bounds values : 1 FAILED
# Avg bus bandwidth    : 111.866
#
# all_gather
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
     8000024       1000003     float    none      -1   100.00   80.00   40.00       0   100.00   80.00   40.00       0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 40.0001
#"""  # As it is printed.

ONE_RANK = """\
# reduce_scatter
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
        1024           256     float     sum      -1     4.00    0.26     n/a       0     2.00    0.51     n/a       0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : n/a
#"""  # As it is printed.


def test_table_of_two_ranks() -> None:
    rows = [
        Row(Op.ALL_REDUCE, 262_144, 2, Half(20.0, 0), Half(10.0, 0)),
        Row(Op.ALL_REDUCE, 67_108_864, 2, Half(12_345.67, 3), Half(1_000.0, 0)),
        Row(Op.ALL_GATHER, 1_000_003, 2, Half(100.0, 0), Half(100.0, 0)),
    ]
    assert render(rows) == TWO_RANKS


def test_table_of_one_rank_has_no_bus_bandwidth() -> None:
    assert render([Row(Op.REDUCE_SCATTER, 256, 1, Half(4.0, 0), Half(2.0, 0))]) == ONE_RANK


def test_merge_averages_times_and_sums_wrong_elements() -> None:
    first = [
        Row(Op.ALL_GATHER, 128, 2, Half(10.0, 0), Half(4.0, 1)),
        Row(Op.ALL_GATHER, 512, 2, Half(8.0, 0), Half(8.0, 0)),
    ]
    second = [Row(Op.ALL_GATHER, 128, 2, Half(30.0, 2), Half(6.0, 5))]
    # The second rank stopped before the second row.
    expected = [Row(Op.ALL_GATHER, 128, 2, Half(20.0, 2), Half(5.0, 6))]
    assert merge([first, second]) == expected


def test_average_bus_bandwidth_covers_all_sizes_and_both_halves() -> None:
    # busbw of 1e6 B over 2 ranks, all_reduce: 100, 50, 20 and 10 GB/s.
    rows = [
        Row(Op.ALL_REDUCE, 250_000, 2, Half(10.0, 0), Half(20.0, 0)),
        Row(Op.ALL_REDUCE, 250_000, 2, Half(50.0, 0), Half(100.0, 0)),
    ]
    assert average_busbw_gbps(rows) == 45.0
    assert average_busbw_gbps([]) is None


def test_formulas_and_report_import_no_torch() -> None:
    code = (
        "import sys, ft.runtime.preflight.table, ft.runtime.preflight.report\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
