"""Leftovers in the environment: which harm, what they do, the way out. Doctor and preflight read one table."""

from __future__ import annotations

import pytest

from ft.recipes.leftovers import LEFTOVERS, leftovers_in
from ft.runtime.preflight.environment import harmful

HARMFUL = {
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "NCCL_IB_DISABLE": "1",
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "LL128",
    "NCCL_LAUNCH_MODE": "GROUP",
    "CUDA_LAUNCH_BLOCKING": "1",
    "NCCL_DEBUG": "TRACE",
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "NCCL_TIMEOUT": "3600",
    "NCCL_ASYNC_ERROR_HANDLING": "1",
    "NCCL_BLOCKING_WAIT": "0",
    "NCCL_DESYNC_DEBUG": "1",
    "NCCL_ENABLE_TIMING": "1",
}
HARMLESS = {
    "NCCL_P2P_DISABLE": "0",
    "NCCL_SHM_DISABLE": "",
    "NCCL_IB_DISABLE": " 0 ",
    "CUDA_LAUNCH_BLOCKING": "0",
    "NCCL_ALGO": "",
    "NCCL_DEBUG": "WARN",
    "TORCH_DISTRIBUTED_DEBUG": "INFO",
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_IB_HCA": "mlx5",
    "NCCL_IB_TIMEOUT": "22",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "PATH": "/usr/bin",
}


def test_every_leftover_is_named_once_in_the_order_of_the_table() -> None:
    assert list(harmful(HARMFUL, device="cuda")) == list(HARMFUL)
    assert [leftover.name for leftover in LEFTOVERS] == list(HARMFUL)


@pytest.mark.parametrize("name", HARMFUL)
def test_each_alone_is_found(name: str) -> None:
    assert list(harmful({**HARMLESS, name: HARMFUL[name]}, device="cuda")) == [name]


def test_settings_of_a_system_are_left_alone() -> None:
    assert harmful(HARMLESS, device="cuda") == {}


def test_nccl_is_nobodys_concern_on_a_cpu() -> None:
    assert list(harmful(HARMFUL, device="cpu")) == ["TORCH_DISTRIBUTED_DEBUG"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "NCCL_IB_DISABLE",
            "1",
            "NCCL_IB_DISABLE=1 takes InfiniBand and RoCE away: machines talk over plain TCP. unset NCCL_IB_DISABLE.",
        ),
        (
            "NCCL_TIMEOUT",
            "3600",
            "NCCL_TIMEOUT=3600 is read by nobody: NCCL has no such variable. unset NCCL_TIMEOUT; `ddp_timeout` in the "
            "recipe is the time that a rank waits for the others.",
        ),
        (
            "NCCL_BLOCKING_WAIT",
            "1",
            "NCCL_BLOCKING_WAIT=1 is the old name, which torch still reads and warns about. unset NCCL_BLOCKING_WAIT, "
            "or set TORCH_NCCL_BLOCKING_WAIT if it is wanted.",
        ),
        (
            "NCCL_DEBUG",
            "trace",
            "NCCL_DEBUG=trace writes a line for every call of NCCL: slow, and it fills the disk. "
            "export NCCL_DEBUG=WARN.",
        ),
    ],
)  # fmt: skip
def test_messages_say_what_it_does_and_the_way_out(name: str, value: str, message: str) -> None:
    assert harmful({name: value}, device="cuda") == {name: message}


def test_a_long_value_is_cut() -> None:
    [leftover] = leftovers_in({"NCCL_ALGO": "x" * 100})
    assert leftover.describe({"NCCL_ALGO": "x" * 100}).startswith(f"NCCL_ALGO={'x' * 39}… takes")
