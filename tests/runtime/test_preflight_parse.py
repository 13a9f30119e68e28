"""The tables of nccl-tests and our own are read back to the digits that were printed.

The stored outputs have the form of old and new versions of nccl-tests; their figures are invented.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft.runtime.preflight import second_opinion
from ft.runtime.preflight.parse import ParsedHalf, ParsedRow, ParsedTable, ParseError, parse
from ft.runtime.preflight.report import Finding, Kind
from ft.runtime.preflight.table import Half, Op, Row, render

STORED = Path(__file__).with_name("nccl_tests")


def stored(name: str) -> str:
    return (STORED / f"{name}.txt").read_text()


def test_one_rank_with_reduced_sizes_and_no_bus_bandwidth() -> None:
    # An old version: it does not name the op, and its header has other blanks.
    assert parse(stored("one_rank")) == [
        ParsedTable(
            op=None,
            rows=[
                ParsedRow(
                    8_388_608, 2_097_152, "float", "sum", -1,
                    ParsedHalf(6.2, 1352.5, 0.0, 0), ParsedHalf(0.31, 27060.0, 0.0, 0),
                ),
                ParsedRow(
                    16_777_216, 4_194_304, "float", "sum", -1,
                    ParsedHalf(12.05, 1392.3, 0.0, 0), ParsedHalf(0.3, 55924.0, 0.0, 0),
                ),
            ],
            num_failed=0,
            average_busbw_gbps=0.0,
            reduced_max_bytes=48_247_057_066,
        )
    ]  # fmt: skip


def test_alltoall_is_not_checked_in_place() -> None:
    assert parse(stored("alltoall")) == [
        ParsedTable(
            op="alltoall",
            rows=[
                ParsedRow(
                    1_048_576, 32_768, "float", "none", -1,
                    ParsedHalf(55.31, 18.96, 16.59, 0), ParsedHalf(54.02, 19.41, 16.98, None),
                ),
                ParsedRow(
                    2_097_152, 65_536, "float", "none", -1,
                    ParsedHalf(61.1, 34.32, 30.03, 3), ParsedHalf(60.88, 34.45, 30.14, None),
                ),
            ],
            # A test, of three elements.
            num_failed=1,
            average_busbw_gbps=23.435,
        )
    ]  # fmt: skip


def test_columns_of_single_iterations_and_the_time_of_day_are_skipped() -> None:
    assert parse(stored("per_iteration")) == [
        ParsedTable(
            op="all_reduce",
            rows=[
                ParsedRow(
                    268_435_456, 67_108_864, "float", "sum", -1,
                    ParsedHalf(1061.22, 252.95, 442.66, 0), ParsedHalf(1060.04, 253.23, 443.15, 0),
                )
            ],
            num_failed=0,
            average_busbw_gbps=442.905,
        )
    ]  # fmt: skip


def test_a_column_that_an_old_version_leaves_empty() -> None:
    # gather had no redop once.
    text = stored("alltoall").replace("    none", "        ")
    assert [row.redop for row in parse(text)[0].rows] == ["", ""]
    assert parse(text)[0].rows[1].out_of_place.num_wrong == 3


def test_output_that_breaks_off() -> None:
    lines = stored("alltoall").splitlines()
    end = next(i for i, line in enumerate(lines) if "Out of bounds" in line)
    [table] = parse("\n".join(lines[: end - 1]))
    assert (len(table.rows), table.is_complete, table.average_busbw_gbps) == (1, False, None)
    assert parse("") == []
    with pytest.raises(ParseError, match="expected size count type redop root time"):
        parse("\n".join([*lines[: end - 1], "     2097152         65536     float"]))
    with pytest.raises(ParseError, match=r"got: 2097152 .* high"):
        parse("\n".join([*lines[: end - 1], lines[end - 1].replace("61.10", " high")]))


halves = st.builds(
    Half,
    st.floats(0.01, 9e6),
    st.just(0.0),
    st.one_of(st.none(), st.integers(0, 99_999)),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(Op), st.integers(1, 2**28), halves, halves),
        min_size=1, max_size=6, unique_by=lambda row: row[0],
    ),
    st.sampled_from([1, 2, 8]),
)  # fmt: skip
def test_our_own_table_comes_back(chosen: list[tuple[Op, int, Half, Half]], num_ranks: int) -> None:
    rows = [Row(op, count, num_ranks, *both) for op, count, *both in chosen]
    tables = parse(render(rows))
    assert [table.op for table in tables] == [str(row.op) for row in rows]
    for table, row in zip(tables, rows, strict=True):
        [parsed] = table.rows
        assert (parsed.size_bytes, parsed.count) == (row.size_bytes, row.count)
        assert table.num_failed == sum(bool(half.num_wrong) for half in row.halves)
        assert (table.average_busbw_gbps is None) == (num_ranks == 1)
        assert (table.plateau_busbw_gbps is None) == (num_ranks == 1)
        for half, printed in zip(row.halves, (parsed.out_of_place, parsed.in_place), strict=True):
            assert printed.num_wrong == half.num_wrong
            # Five digits at least, or two decimals.
            assert printed.time_us == pytest.approx(half.time_us, rel=1e-4, abs=0.0051)
            assert (printed.busbw_gbps is None) == (num_ranks == 1)


# ----------------------------------------------------------------------------------- second opinion


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An all_reduce_perf on PATH, in shell."""
    path = folder / "all_reduce_perf"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def measured(busbw: float) -> Row:
    """256 MiB on 8 ranks."""
    half = Half(2**28 * 14 / 8 / busbw / 1e3, 0.0, 0)
    return Row(Op.ALL_REDUCE, 2**26, 8, half, half)


def test_without_the_program_there_is_no_second_opinion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert second_opinion.ask(8, timeout_s=10) is None


def test_it_is_asked_with_large_sizes_and_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo "$@" > {tmp_path}/arguments; cat {STORED}/per_iteration.txt'
    program(tmp_path, monkeypatch, script)
    opinion = second_opinion.ask(8, timeout_s=10)
    assert opinion is not None
    asked = (tmp_path / "arguments").read_text()
    assert asked == "-b 8M -e 1G -f 2 -c 1 -n 20 -w 5 -g 8\n"
    assert opinion.to_json()["table"]["rows"][0]["out_of_place"]["busbw_gbps"] == 442.66
    # It measured 442.66 and 443.15: 399 is a tenth less.
    assert second_opinion.findings(opinion, [measured(400.0), measured(480.0)], "h") == []
    assert second_opinion.findings(opinion, [measured(390.0)], "h") == [
        Finding(
            None, "h", Kind.WARN,
            "all_reduce_perf of nccl-tests measures 442.9 GB/s of bus bandwidth at 268435456 "
            "bytes, this preflight 390",
        )
    ]  # fmt: skip
    assert second_opinion.describe(opinion) == (
        "# Second opinion       : all_reduce_perf: 442.66 GB/s of bus bandwidth at 268435456 bytes"
    )


def test_wrong_values_that_it_finds_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, f"cat {STORED}/alltoall.txt; exit 1")
    opinion = second_opinion.ask(8, timeout_s=10)
    assert opinion is not None
    [finding] = second_opinion.findings(opinion, [], "h")
    assert str(finding) == "h: all_reduce_perf of nccl-tests found wrong values in 1 tests"
    assert finding.kind is Kind.WRONG


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo no GPU >&2; exit 3", "it ended with 3 and said: no GPU"),
        ("exec sleep 60", "timed out after 0.3 seconds"),
        (f"head -15 {STORED}/alltoall.txt", "it ended with 0 and said: "),
    ],
)
def test_no_answer_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: str
) -> None:
    program(tmp_path, monkeypatch, script)
    opinion = second_opinion.ask(1, timeout_s=0.3 if "sleep" in script else 10)
    assert opinion is not None
    assert (opinion.table, error in str(opinion.error)) == (None, True)
    [finding] = second_opinion.findings(opinion, [measured(1.0)], "h")
    assert finding.kind is Kind.WARN
    assert error in finding.message
