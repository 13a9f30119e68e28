"""Docs tell the truth: the key reference is the schema's."""

from __future__ import annotations

import re
import subprocess
import sys
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


def test_every_key_says_what_it_does() -> None:
    from ft.recipes.schema import SECTIONS

    silent = [
        key
        for section in SECTIONS.values()
        for key, f in section.model_fields.items()
        if not f.description
    ]
    assert silent == []


def test_every_link_of_the_docs_leads_somewhere(repo: Path) -> None:
    pages = [*repo.glob("*.md"), *(repo / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert pages
    assert broken == []
