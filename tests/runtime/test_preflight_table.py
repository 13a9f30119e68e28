"""Formulas and table of preflight against what nccl-tests documents and prints."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest

from ft.runtime.preflight.table import (
    Half,
    Op,
    Row,
    Stream,
    algbw_gbps,
    average_busbw_gbps,
    bus_factor,
    busbw_gbps,
    count_of,
    fixed_width,
    merge,
    plateau_busbw_gbps,
    redop_of,
    render,
    root_of,
    size_of,
)


def test_algorithm_bandwidth_is_size_over_time_in_1e9_bytes() -> None:
    # 48e9 B in 1 s, and 1 MiB in 10 us: 1048576 B / 1e-5 s = 104.8576e9 B/s.
    assert algbw_gbps(48_000_000_000, 1_000_000.0) == 48.0
    assert algbw_gbps(2**20, 10.0) == pytest.approx(104.8576, rel=1e-12)


# What the documentation of nccl-tests says of each op, written down a second time: how the `size` column comes from
# the elements of a rank, and bus bandwidth / algorithm bandwidth, as a fraction of n ranks.
DOCUMENTED: dict[str, tuple[str, str]] = {
    "all_reduce": ("count", "2(n-1)/n"),
    "all_gather": ("count*n", "(n-1)/n"),
    "reduce_scatter": ("count*n", "(n-1)/n"),
    "alltoall": ("count*n", "(n-1)/n"),
    "gather": ("count*n", "(n-1)/n"),
    "scatter": ("count*n", "(n-1)/n"),
    "broadcast": ("count", "1"),
    "reduce": ("count", "1"),
    "sendrecv": ("count", "1"),
}
NUMBERS_OF_RANKS = (1, 2, 3, 4, 7, 8, 16)


def documented_factor(op: str, n: int) -> Fraction:
    formula = DOCUMENTED[op][1]
    return {"1": Fraction(1), "(n-1)/n": Fraction(n - 1, n), "2(n-1)/n": Fraction(2 * n - 2, n)}[
        formula
    ]


def test_there_is_an_op_for_each_that_is_documented() -> None:
    assert {str(op) for op in Op} == set(DOCUMENTED)


@pytest.mark.parametrize("op", Op)
def test_bus_bandwidth_is_that_of_nccl_tests(op: Op) -> None:
    # 48e9 bytes in 1 s: an algorithm bandwidth of 48 GB/s.
    expected = {n: float(48 * documented_factor(op, n)) for n in NUMBERS_OF_RANKS if n > 1}
    got = {n: busbw_gbps(op, 48_000_000_000, 1_000_000.0, n) for n in expected}
    assert got == pytest.approx(expected, rel=1e-12)
    assert busbw_gbps(op, 48_000_000_000, 1_000_000.0, 1) is None
    assert {n: bus_factor(op, n) for n in NUMBERS_OF_RANKS} == pytest.approx(
        {n: float(documented_factor(op, n)) for n in NUMBERS_OF_RANKS}, rel=1e-12
    )


def test_bus_bandwidth_in_figures() -> None:
    # By hand, for 8 ranks and an algorithm bandwidth of 48 GB/s: 48 · 14/8, 48 · 7/8 and 48.
    got = {str(op): busbw_gbps(op, 48_000_000_000, 1_000_000.0, 8) for op in Op}
    assert got == {
        "all_reduce": 84.0,
        "all_gather": 42.0,
        "reduce_scatter": 42.0,
        "alltoall": 42.0,
        "broadcast": 48.0,
        "reduce": 48.0,
        "sendrecv": 48.0,
        "gather": 42.0,
        "scatter": 42.0,
    }


@pytest.mark.parametrize("op", Op)
def test_elements_and_size_are_those_of_nccl_tests(op: Op) -> None:
    one_buffer = dict.fromkeys(NUMBERS_OF_RANKS, 262_144)
    # 3 ranks: 1048576 // 3 = 349525 B, rounded down to 16 B is 349520 B, 87380 elements;
    # 7 ranks: 1048576 // 7 = 149796 B, rounded down to 149792 B, 37448 elements.
    shared = {1: 262_144, 2: 131_072, 3: 87_380, 4: 65_536, 7: 37_448, 8: 32_768, 16: 16_384}
    is_total = DOCUMENTED[op][0] == "count*n"
    counts = {n: count_of(op, 2**20, n) for n in NUMBERS_OF_RANKS}
    assert counts == (shared if is_total else one_buffer)
    sizes = {n: size_of(op, count, n) for n, count in counts.items()}
    # 3 · 349520 and 7 · 149792.
    rounded = {n: {3: 1_048_560, 7: 1_048_544}.get(n, 2**20) for n in NUMBERS_OF_RANKS}
    assert sizes == (rounded if is_total else dict.fromkeys(NUMBERS_OF_RANKS, 2**20))


def test_a_share_of_less_than_16_bytes_is_none() -> None:
    assert [count_of(Op.ALL_GATHER, size, 2) for size in (8, 16, 31, 32)] == [0, 0, 0, 4]
    assert [count_of(Op.ALL_REDUCE, size, 2) for size in (3, 4, 8)] == [0, 1, 2]


def test_reduction_and_root_columns() -> None:
    assert {str(op): (redop_of(op), root_of(op)) for op in Op} == {
        "all_reduce": ("sum", -1),
        "all_gather": ("none", -1),
        "reduce_scatter": ("sum", -1),
        "alltoall": ("none", -1),
        "broadcast": ("none", 0),
        "reduce": ("sum", 0),
        "sendrecv": ("sum", -1),
        "gather": ("none", 0),
        "scatter": ("none", 0),
    }


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
# Plateau bus bandwidth: 145.089
#
# all_gather
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
     8000024       1000003     float    none      -1   100.00   80.00   40.00       0   100.00   80.00   40.00       0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 40.0001
# Plateau bus bandwidth: 40.0001
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
# Plateau bus bandwidth: n/a
#"""  # As it is printed.


def half(time_us: float, num_wrong: int | None = 0) -> Half:
    return Half(time_us, time_us, num_wrong)


TWO_OPS = [
    Row(Op.ALL_REDUCE, 262_144, 2, half(20.0), half(10.0)),
    Row(Op.ALL_REDUCE, 67_108_864, 2, half(12_345.67, 3), half(1_000.0)),
    Row(Op.ALL_GATHER, 1_000_003, 2, half(100.0), half(100.0)),
]


def test_table_of_two_ranks() -> None:
    assert render(TWO_OPS) == TWO_RANKS


def test_table_grows_row_by_row_to_the_same_text() -> None:
    stream = Stream()
    parts = [*map(stream.add, TWO_OPS), stream.close()]
    # The second row of an op is a line and nothing else.
    assert parts[1].count("\n") == 0
    assert "\n".join(parts) == TWO_RANKS
    assert stream.close() == ""


def test_table_of_one_rank_has_no_bus_bandwidth() -> None:
    assert render([Row(Op.REDUCE_SCATTER, 256, 1, half(4.0), half(2.0))]) == ONE_RANK


def test_what_was_not_compared_is_not_available() -> None:
    row = Row(Op.ALLTOALL, 131_072, 2, half(20.0), half(10.0, None))
    # 2 · 131072 elements are 1 MiB; in place alltoall overwrites what it has to send.
    line = (
        "     1048576        131072     float    none      -1"
        "    20.00   52.43   26.21       0    10.00  104.86   52.43     N/A"
    )
    assert render([row]).splitlines()[5] == line


def test_merge_averages_times_keeps_the_slowest_and_sums_wrong_elements() -> None:
    first = [
        Row(Op.ALL_GATHER, 128, 2, half(10.0), half(4.0, 1)),
        Row(Op.ALL_GATHER, 512, 2, half(8.0), half(8.0)),
    ]
    second = [Row(Op.ALL_GATHER, 128, 2, half(30.0, 2), half(6.0, 5))]
    # The second rank stopped before the second row.
    expected = [Row(Op.ALL_GATHER, 128, 2, Half(20.0, 30.0, 2), Half(5.0, 6.0, 6))]
    assert merge([first, second]) == expected
    unchecked = [Row(Op.SENDRECV, 8, 2, half(1.0), half(1.0, None))]
    assert merge([unchecked, unchecked]) == unchecked


def test_average_bus_bandwidth_covers_all_sizes_and_both_halves() -> None:
    # busbw of 1e6 B over 2 ranks, all_reduce: 100, 50, 20 and 10 GB/s.
    rows = [
        Row(Op.ALL_REDUCE, 250_000, 2, half(10.0), half(20.0)),
        Row(Op.ALL_REDUCE, 250_000, 2, half(50.0), half(100.0)),
    ]
    assert average_busbw_gbps(rows) == 45.0
    assert average_busbw_gbps([]) is None


def of_size(size_bytes: int, busbw: float) -> Row:
    """all_reduce on two ranks, where busbw is size / time."""
    time_us = size_bytes / busbw / 1e3
    return Row(Op.ALL_REDUCE, size_bytes // 4, 2, half(time_us), half(time_us))


def test_plateau_is_the_median_of_the_sizes_from_256_mib_on() -> None:
    rows = [
        of_size(2**20, 5.0),
        of_size(2**28, 400.0),
        of_size(2**29, 440.0),
        of_size(2**30, 460.0),
    ]
    assert plateau_busbw_gbps(rows) == pytest.approx(440.0)
    # 100 MB less is not large.
    assert plateau_busbw_gbps([of_size(2**27, 300.0), of_size(2**28, 400.0)]) == pytest.approx(
        400.0
    )


def test_plateau_of_small_sizes_is_that_of_the_two_largest() -> None:
    # The odd size comes last in a table, and is not the largest.
    rows = [of_size(2**10, 1.0), of_size(2**24, 10.0), of_size(2**26, 20.0), of_size(2**22, 2.0)]
    assert plateau_busbw_gbps(rows) == pytest.approx(15.0)
    assert plateau_busbw_gbps([]) is None
    assert plateau_busbw_gbps([Row(Op.REDUCE, 256, 1, half(4.0), half(2.0))]) is None


def test_formulas_and_report_import_no_torch() -> None:
    pure = ("table", "report", "expected", "outliers", "assess", "parse", "second_opinion")
    imports = ", ".join(f"ft.runtime.preflight.{name}" for name in pure)
    code = f"import sys, {imports}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
