"""Docs tell the truth: the key reference is the schema's."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path


def test_the_key_reference_is_what_the_schema_says(repo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_keys.py", "--check"],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_table_of_the_key_reference_has_its_columns(repo: Path) -> None:
    # A `|` within a cell, in code as well, would begin a new one.
    lines = (repo / "docs/keys.md").read_text(encoding="utf-8").splitlines()
    rows = [
        (n, len(re.findall(r"(?<!\\)\|", line))) for n, line in enumerate(lines) if line[:1] == "|"
    ]
    broken = [
        lines[number]
        for (before, columns), (number, count) in pairwise(rows)
        if number == before + 1 and count != columns
    ]
    assert rows
    assert broken == []


def test_every_word_of_the_vocabulary_is_in_the_key_reference(repo: Path) -> None:
    from ft.recipes.reference import entries

    text = (repo / "docs/keys.md").read_text(encoding="utf-8")
    assert [key for key in entries() if f"\n| `{key}` |" not in text] == []


def test_every_link_of_the_docs_leads_somewhere(repo: Path) -> None:
    pages = [*repo.glob("*.md"), *(repo / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)\)", re.sub(r"`[^`\n]+`", "``", page.read_text()))
        if not (page.parent / link).exists()
    ]
    assert pages
    assert broken == []
