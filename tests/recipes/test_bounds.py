"""Numbers have bounds: every numeric key of the schema, elements and names of mappings included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from ft.recipes.errors import Severity
from ft.recipes.load import loads
from ft.recipes.normalize import normalize
from ft.recipes.schema import SECTIONS
from ft.recipes.schema.base import Section
from ft.recipes.schema.plugins import PLUGIN_SECTIONS
from ft.recipes.schema.values import Limits

WITHOUT = {
    "scaling_softmax_bias": "added to a logit, up or down",
    "torch_compile_options{}": "options of torch, which knows their bounds",
    "trl.reward_weights[]": "a negative weight turns a reward into a penalty",
}
"""Numbers that may be any -> why."""

_LIMITS = ("ge", "gt", "le", "lt")


def is_bounded(marks: Iterable[object]) -> bool:
    return any(
        getattr(mark, name) is not None
        for mark in marks
        if isinstance(mark, Limits)
        for name in _LIMITS
    )


def numbers(annotation: Any, path: str, *, bounded: bool = False) -> Iterator[tuple[str, bool]]:
    """(path, has a bound) of every number in a type. A bound of a list is none of its elements."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in {int, float}:
        yield path, bounded
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        yield from of_section(annotation, f"{path}.")
    elif origin is Annotated:
        inner, *marks = arguments
        yield from numbers(inner, path, bounded=bounded or is_bounded(marks))
    elif origin in {tuple, list, dict}:
        places = ("{name}", "{}") if origin is dict else ("[]",) * len(arguments)
        for inner, place in zip(arguments, places, strict=True):
            yield from numbers(inner, f"{path}{place}")
    elif origin is not Literal:
        for inner in arguments:
            if inner not in {NoneType, Ellipsis}:
                yield from numbers(inner, path, bounded=bounded)


def of_section(section: type[Section], before: str = "") -> Iterator[tuple[str, bool]]:
    for key, field in section.model_fields.items():
        yield from numbers(field.annotation, f"{before}{key}", bounded=is_bounded([field.limits]))


def test_every_number_has_a_bound_or_a_reason_to_have_none() -> None:
    found = [
        number
        for section in [*SECTIONS.values(), *PLUGIN_SECTIONS.values()]
        for number in of_section(section)
    ]
    assert len(found) > 250
    assert sorted({path for path, bounded in found if not bounded}) == sorted(WITHOUT)
    assert all(WITHOUT.values())


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("fix_untrained_tokens: -1", "fix_untrained_tokens", "greater than or equal to 0 or a list, got -1"),
        ("fix_untrained_tokens: [1, -1]", "fix_untrained_tokens.1", "greater than or equal to 0, got -1"),
        ("gpu_memory_limit: -5", "gpu_memory_limit", "greater than or equal to 1 or text, got -5"),
        ("gpu_memory_limit: 0", "gpu_memory_limit", "greater than or equal to 1 or text, got 0"),
        ("max_memory: {0: -1}", "max_memory.0", "greater than or equal to 0 or text, got -1"),
        ("device_map: -1", "device_map",
         "greater than or equal to 0 or text or a mapping of keys, got -1"),
        ("device_map: {x: -1}", "device_map.x", "greater than or equal to 0 or text, got -1"),
        ("device: -1", "device", "greater than or equal to 0 or text, got -1"),
        ("pose_split_on_token_ids: [-3]", "pose_split_on_token_ids.0", "greater than or equal to 0, got -3"),
        ("datasets: [{path: a, seed: -1}]", "datasets.0.seed", "greater than or equal to 0, got -1"),
        ("datasets: [{path: a, seed: 4294967296}]", "datasets.0.seed", "less than 4294967296, got 4294967296"),
        ("dpo_loss_weights: [1, -1]", "dpo_loss_weights.1", "greater than or equal to 0, got -1"),
        ("ebft: {alignment_coef: -1}", "ebft.alignment_coef", "greater than or equal to 0, got -1"),
        ("ebft: {diversity_coef: -1}", "ebft.diversity_coef", "greater than or equal to 0, got -1"),
        ("ebft: {rl_coef: -1}", "ebft.rl_coef", "greater than or equal to 0, got -1"),
        ("ebft: {ce_coef: -1}", "ebft.ce_coef", "greater than or equal to 0, got -1"),
        ("peft_layer_replication: [[-1, 3]]", "peft_layer_replication.0.0", "greater than or equal to 0, got -1"),
        ("peft_layer_replication: [[0, 0]]", "peft_layer_replication.0.1", "greater than or equal to 1, got 0"),
        ("scaling_softmax_factor: 0", "scaling_softmax_factor", "greater than 0, got 0"),
        ("image_size: [0, 5]", "image_size.0", "greater than or equal to 1, got 0"),
    ],
)  # fmt: skip
def test_a_number_out_of_bounds_is_one_problem(text: str, key: str, expected: str) -> None:
    problems = normalize(loads(text)).problems
    found = [(p.dotted, p.message) for p in problems if not p.message.startswith("not runnable")]
    assert found == [(key, f"expected {expected}")]


@pytest.mark.parametrize(
    "text",
    [
        "trl: {reward_weights: [1, -0.5]}", "device_map: {'': 0}", "max_memory: {0: 20GiB, cpu: 0}",
        "peft_layer_replication: [[0, 4], [2, 5]]", "ebft: {rl_coef: 0}", "gpu_memory_limit: 40GiB",
    ],
)  # fmt: skip
def test_a_number_within_them_is_none(text: str) -> None:
    problems = normalize(loads(text)).problems
    assert [p for p in problems if p.severity is not Severity.PLANNED] == []
