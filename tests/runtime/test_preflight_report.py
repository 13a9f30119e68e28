"""From the reports of the ranks to one verdict and one JSON file."""

from __future__ import annotations

import json
from pathlib import Path

from ft.runtime.preflight.report import Finding, Kind, RankReport, Report, Setup, judge
from ft.runtime.preflight.table import Half, Op, Row

SETUP = Setup(device="cpu", backend="gloo", world_size=2, host="h0", torch="2.13.0")


def rank_report(rank: int) -> RankReport:
    row = Row(Op.ALL_REDUCE, 250_000, 2, Half(10.0, 0), Half(20.0, 0))
    return RankReport(rank, f"h{rank}", 100 + rank, device={"index": 0, "name": "c"}, rows=[row])


def test_first_line_names_device_backend_ranks_host_and_torch() -> None:
    assert str(SETUP) == (
        "# ft preflight: device cpu, backend gloo, 2 ranks, host h0, torch 2.13.0"
    )


def test_report_of_a_rank_survives_the_store() -> None:
    report = rank_report(1)
    report.add(Kind.WRONG, "broken")
    assert RankReport.from_json(report.to_json()) == report


def test_cause_is_judged_before_what_it_did_to_others() -> None:
    first, second, fourth = rank_report(0), rank_report(1), rank_report(3)
    first.add(Kind.FAILED, "all_reduce failed")
    first.add(Kind.WRONG, "3 wrong elements")
    second.add(Kind.STUCK, "all_reduce did not end")
    second.add(Kind.CONFIG, "disk too small")
    fourth.add(Kind.FAILED, "all_reduce failed")
    hosts = ["h0", "h1", "h2", "h3", None]
    findings = judge([first, second, None, fourth, None], hosts, 64.0)
    assert [str(finding) for finding in findings] == [
        "h1: disk too small",
        "rank 2 on h2: it did not give a report within 64 s",
        "rank 4 on unknown host: it did not start within 64 s",
        "rank 1 on h1: all_reduce did not end",
        "rank 0 on h0: 3 wrong elements",
        "rank 0 on h0: all_reduce failed",
        "rank 3 on h3: all_reduce failed",
    ]


def test_what_all_ranks_of_a_host_say_is_said_once() -> None:
    reports = [rank_report(0), RankReport(1, "h0", 101)]
    for report in reports:
        report.add(Kind.CONFIG, "2 GPUs asked for")
    findings = judge(reports, ["h0", "h0"], 64.0)
    assert [str(finding) for finding in findings] == ["h0: 2 GPUs asked for"]


def test_json_of_a_pass(tmp_path: Path) -> None:
    path = tmp_path / "preflight.json"
    Report(SETUP, 1.23456, [rank_report(0), rank_report(1)], []).write(path)
    assert json.loads(path.read_text()) == {
        "verdict": "pass",
        "exit_code": 0,
        "reason": "done",
        "message": "passed",
        "findings": [],
        "device": "cpu",
        "backend": "gloo",
        "world_size": 2,
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
                    "algbw_gbps": 100.0,
                    "busbw_gbps": 100.0,
                    "num_wrong": 0,
                },
                "in_place": {
                    "time_us": 20.0,
                    "algbw_gbps": 50.0,
                    "busbw_gbps": 50.0,
                    "num_wrong": 0,
                },
            }
        ],
        "average_busbw_gbps": {"all_reduce": 75.0, "all_gather": None, "reduce_scatter": None},
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["preflight.json"]


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
