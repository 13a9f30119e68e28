"""From the reports of the ranks to one verdict and one JSON file."""

from __future__ import annotations

import json

from ft.runtime.preflight.outliers import Pair
from ft.runtime.preflight.report import Finding, Kind, RankReport, Report, Setup, judge
from ft.runtime.preflight.table import Half, Op, Row

SETUP = Setup(device="cpu", backend="gloo", world_size=2, num_nodes=1, host="h0", torch="2.13.0")


def rank_report(rank: int) -> RankReport:
    # Rank 1 takes 8 us more for the second one.
    slow_us = 20.0 + 8 * rank
    halves = Half(10.0, 10.0, 0), Half(slow_us, slow_us, 0)
    return RankReport(
        rank,
        f"h{rank}",
        100 + rank,
        2,
        device={"index": 0, "name": "c"},
        launch_us={"all_reduce": [3.0, 1.0, 2.0]},
        unsupported={"alltoall": "no such op"},
        rows=[Row(Op.ALL_REDUCE, 250_000, 2, *halves)],
        pairs=[] if rank else [Pair(0, 1, 5.0, 1000.0, 2_000_000, 0)],
    )


def test_first_line_names_device_backend_ranks_host_and_torch() -> None:
    assert str(SETUP) == (
        "# ft preflight: device cpu, backend gloo, 2 ranks, host h0, torch 2.13.0"
    )
    assert str(Setup("cuda", "nccl", 16, 2, "h0", "2.13.0")) == (
        "# ft preflight: device cuda, backend nccl, 16 ranks on 2 nodes, host h0, torch 2.13.0"
    )


def test_report_of_a_rank_survives_the_store() -> None:
    report = rank_report(1)
    report.add(Kind.WRONG, "broken")
    assert RankReport.from_json(report.to_json()) == report


def test_cause_is_judged_before_what_it_did_to_others() -> None:
    first, second, fourth = rank_report(0), rank_report(1), rank_report(3)
    first.add(Kind.FAILED, "all_reduce failed")
    first.add(Kind.WARN, "it is hot")
    first.add(Kind.WRONG, "3 wrong elements")
    second.add(Kind.STUCK, "all_reduce did not end")
    second.add(Kind.CONFIG, "disk too small")
    fourth.add(Kind.FAILED, "all_reduce failed")
    silent = Finding(2, "h2", Kind.SILENT, "it gave no report")
    findings = judge([first, second, None, fourth], [None, None, silent, None])
    assert [str(finding) for finding in findings] == [
        "h1: disk too small",
        "rank 2 on h2: it gave no report",
        "rank 1 on h1: all_reduce did not end",
        "rank 0 on h0: 3 wrong elements",
        "rank 0 on h0: all_reduce failed",
        "rank 3 on h3: all_reduce failed",
        "rank 0 on h0: it is hot",
    ]


def test_what_all_ranks_of_a_host_say_is_said_once() -> None:
    reports = [rank_report(0), RankReport(1, "h0", 101, 2)]
    for report in reports:
        report.add(Kind.CONFIG, "2 GPUs asked for")
    assert [str(finding) for finding in judge(reports)] == ["h0: 2 GPUs asked for"]


def test_ranks_that_were_told_of_different_numbers_of_ranks_are_named() -> None:
    findings = judge([rank_report(0), RankReport(1, "h1", 101, 3)])
    assert findings == [
        Finding(
            1,
            "h1",
            Kind.CONFIG,
            "rank 1 was started with WORLD_SIZE 3, rank 0 on h0 with 2. "
            "Start all ranks with the same one.",
        )
    ]


def test_json_of_a_pass() -> None:
    report = Report(SETUP, 1.23456, [rank_report(0), rank_report(1)], [])
    assert json.loads(report.to_json()) == {
        "verdict": "pass",
        "exit_code": 0,
        "reason": "done",
        "message": "passed",
        "findings": [],
        "warnings": [],
        "device": "cpu",
        "backend": "gloo",
        "world_size": 2,
        "num_nodes": 1,
        "host": "h0",
        "torch": "2.13.0",
        "seconds": 1.235,
        "ranks": [
            {
                "rank": rank,
                "host": f"h{rank}",
                "pid": 100 + rank,
                "device": {"index": 0, "name": "c"},
                "memory": {},
                "disk": {},
                "health": {},
                "matmul": {},
                # The median of its tests.
                "launch_us": {"all_reduce": 2.0},
            }
            for rank in (0, 1)
        ],
        "rows": [
            {
                "op": "all_reduce",
                "size_bytes": 1_000_000,
                "count": 250_000,
                "type": "float",
                "redop": "sum",
                "root": -1,
                "out_of_place": {
                    "time_us": 10.0,
                    "time_max_us": 10.0,
                    "algbw_gbps": 100.0,
                    "busbw_gbps": 100.0,
                    "num_wrong": 0,
                },
                # 1e6 B in (20 + 28) / 2 us.
                "in_place": {
                    "time_us": 24.0,
                    "time_max_us": 28.0,
                    "algbw_gbps": 1_000_000 / 24e3,
                    "busbw_gbps": 1_000_000 / 24e3,
                    "num_wrong": 0,
                },
            }
        ],
        "unsupported": {"alltoall": "no such op"},
        "average_busbw_gbps": {"all_reduce": (100 + 1_000_000 / 24e3) / 2},
        "plateau_busbw_gbps": {"all_reduce": (100 + 1_000_000 / 24e3) / 2},
        "links": [
            {
                "first": 0,
                "second": 1,
                "latency_us": 5.0,
                "time_us": 1000.0,
                "size_bytes": 2_000_000,
                "num_wrong": 0,
                "bandwidth_gbps": 2.0,
            }
        ],
        "expected": [],
        "second_opinion": None,
    }


def test_json_of_a_failure_says_why_and_drops_rows_that_not_all_ranks_have() -> None:
    findings = [Finding(1, "h1", Kind.SILENT, "it is gone"), Finding(0, "h0", Kind.FAILED, "x")]
    data = json.loads(Report(SETUP, 1.0, [rank_report(0)], findings).to_json())
    assert (data["verdict"], data["exit_code"], data["reason"]) == ("fail", 77, "bad_node")
    assert data["message"] == "rank 1 on h1: it is gone (1 more finding)"
    assert data["findings"][1] == {"rank": 0, "host": "h0", "kind": "failed", "message": "x"}
    assert data["rows"] == []


def test_configuration_has_its_own_exit_code_and_reason() -> None:
    data = json.loads(Report(SETUP, 1.0, [], [Finding(0, "h0", Kind.CONFIG, "disk")]).to_json())
    assert (data["exit_code"], data["reason"], data["message"]) == (78, "config", "h0: disk")


def test_warnings_are_told_and_no_failure() -> None:
    findings = [
        Finding(None, "h0", Kind.WARN, "all_reduce is slow"),
        Finding(1, "h1", Kind.WARN, "hot"),
    ]
    data = json.loads(Report(SETUP, 1.0, [], findings).to_json())
    assert (data["verdict"], data["exit_code"], data["reason"]) == ("warn", 0, "done")
    assert data["message"] == "passed, but h0: all_reduce is slow (1 more warning)"
    assert data["findings"] == []
    assert [warning["message"] for warning in data["warnings"]] == ["all_reduce is slow", "hot"]


def test_a_warning_beside_a_failure_is_not_counted_among_the_findings() -> None:
    findings = [Finding(0, "h0", Kind.SLOW, "half"), Finding(1, "h1", Kind.WARN, "hot")]
    data = json.loads(Report(SETUP, 1.0, [], findings).to_json())
    assert (data["verdict"], data["exit_code"]) == ("fail", 77)
    assert data["message"] == "rank 0 on h0: half"
