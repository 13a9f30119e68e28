"""A value is put into a recipe's text, and the rest of the text stays."""

from __future__ import annotations

import pytest

from ft.recipes.errors import FtError, RecipeError
from ft.recipes.writing import put

KEY = ("cloud", "image", "base")
VALUE = "python:3.11@sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: 1", f"a: 1\ncloud:\n  image:\n    base: {VALUE}\n"),
        ("# c\na: 1 # d\n", f"# c\na: 1 # d\ncloud:\n  image:\n    base: {VALUE}\n"),
        ("cloud:\n    gpu: x # c\na: 1\n", f"cloud:\n    image:\n      base: {VALUE}\n    gpu: x # c\na: 1\n"),
        ("cloud:\n  image:\n    # c\n    apt: [x]\n", f"cloud:\n  image:\n    base: {VALUE}\n    # c\n    apt: [x]\n"),
        ("cloud:\n  image:\n    base: old # c\n", f"cloud:\n  image:\n    base: {VALUE} # c\n"),
        ("cloud:\n  image:\n    base: 'old'\n", f"cloud:\n  image:\n    base: {VALUE}\n"),
        ("cloud:\n  image: {base: old, apt: [x]}\n", None),
        ("cloud: {gpu: cpu}\n", None),
        ('{"cloud": {"gpu": "cpu"}}', None),
        ("cloud: &c\n  gpu: cpu\nx: *c\n", None),
        ("cloud:\n  image: text\n", None),
    ],
)  # fmt: skip
def test_put(before: str, after: str | None) -> None:
    if after is not None:
        assert put(before, "r.yml", KEY, VALUE) == after
        assert put(after, "r.yml", KEY, VALUE) == after
        return
    with pytest.raises(FtError) as caught:
        put(before, "r.yml", KEY, VALUE)
    assert caught.value.message.startswith("r.yml:")
    assert caught.value.message.endswith(
        "cloud.image.base cannot be put here safely; write it by hand:\n"
        f"cloud:\n  image:\n    base: {VALUE}"
    )


def test_what_is_no_recipe() -> None:
    with pytest.raises(RecipeError):
        put("- a\n", "r.yml", KEY, VALUE)
