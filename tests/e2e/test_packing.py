"""Packed runs through `ft`: two processes train on the same packs as one."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def packs_of_steps(lab: Any, store: Any, ranks: int) -> dict[int, list[list[int]]]:
    """Step -> its packs as lists of row ids, sorted."""
    found: dict[int, list[list[int]]] = {}
    for rank in range(ranks):
        for part in lab.rows_of(store, 1, rank):
            rows = iter(part["rows"])
            packs = [[next(rows) for _ in range(size)] for size in part["packs"]]
            found[part["step"]] = sorted([*found.get(part["step"], []), *packs])
    return found


def test_one_and_two_processes_see_the_same_packs_and_losses(lab: Any) -> None:
    """The same global batch of 4 packs, no dropout; evaluations are packed as well."""
    changes: dict[str, Any] = {
        "sample_packing": True,
        "micro_batch_size": 1,
        "sequence_len": 128,
        "val_set_size": 8,
        "max_steps": 4,
        "save_steps": 100,
        "lora_dropout": 0.0,
        "learning_rate": 0.001,
    }
    stores = []
    for name, more in (
        ("one", {"gradient_accumulation_steps": 4}),
        ("two", {"gradient_accumulation_steps": 2, "cloud": {"gpu": "cpu:2"}}),
    ):
        stores.append(lab.start(lab.recipe(**changes, **more), name))
        outcome = lab.outcome(name)
        assert outcome["state"] == "SUCCEEDED", outcome
    one, two = stores
    packs = packs_of_steps(lab, one, 1)
    assert packs == packs_of_steps(lab, two, 2)
    assert max(len(rows) for step in packs.values() for rows in step) > 1
    a, b = lab.losses(one), lab.losses(two)
    assert sorted(a) == sorted(b) == [1, 2, 3, 4]
    assert max(abs(a[step] - b[step]) for step in a) < 1e-5
    (e1,), (e2,) = ([e["data"] for e in lab.events(s) if e["kind"] == "eval"] for s in stores)
    assert e1["trained_tokens"] == e2["trained_tokens"] > 0
    assert abs(e1["loss"] - e2["loss"]) < 1e-5
