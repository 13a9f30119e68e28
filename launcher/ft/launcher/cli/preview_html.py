"""Rows and numbers as one page for a browser: no script, nothing from elsewhere, everything in the data escaped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from ft.launcher.cli.preprocess import FATES
from ft.launcher.cli.preview_rows import Piece, Row
from ft.launcher.cli.preview_text import bins
from ft.launcher.cli.printable import spelled_out

MOST_OPEN_SPANS = 6
"""A longer table is folded."""
BEGINS_CHARACTERS = 100

LEGEND = """\
<h2>Rows</h2>
<div class="key">
<span class="text"><span class="on"><i>trained</i></span></span>
<span class="text">not trained</span>
<span class="text"><span class="special"><i>special token</i></span></span>
<span class="text"><i>every </i><i>second </i><i>token </i><i>underlined</i></span>
<span class="text"><u>↵</u> end of line</span>
</div>"""


def page(recipe: str, said: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The whole document; it is well-formed XML too."""
    template = (files("ft.launcher.cli") / "preview.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=_safe(f"Preview of {recipe}"),
        made=time.strftime("%Y-%m-%d"),
        cards="".join(f"<div><b>{value}</b>{_safe(name)}</div>" for value, name in _cards(said)),
        rows="\n".join([LEGEND, *map(_row, rows)]) if rows else "",
        histogram=_histogram(said),
        counts=_table(_counts(said), numbers=(0,)),
        bad=_bad(said["bad"], said["counts"]["bad"]),
    )


def _safe(text: str) -> str:
    return escape(spelled_out(text))


def _cards(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    shares, counts = said["shares"], said["counts"]
    yield f"{shares['trained']:.1%}", f"of {counts['tokens']:,} tokens are trained"
    yield f"{counts['kept']:,}", f"rows, {shares['kept']:.1%} of what was read"
    yield (
        f"{said['lengths']['median']:,}",
        f"tokens in the middle row; 95% have ≤ {said['lengths']['p95']:,}",
    )
    size = said["sequence_len"]
    yield f"{shares['packed']:.1%}", f"of {said['packs']:,} packed rows of {size:,} tokens filled"


def _row(row: Row) -> str:
    name, _, facts = row.title.partition("  ")
    text = "".join(map(_piece, row.pieces))
    spans = row.spans()
    table = _table(
        (
            (
                str(number),
                f"{span.start:,}–{span.end - 1:,}",
                f"{span.end - span.start:,}",
                _beginning(span.text),
            )
            for number, span in enumerate(spans, start=1)
        ),
        header=("Span", "Tokens", "Trained", "Begins"),
        numbers=(0, 1, 2),
    )
    count = f"{len(spans):,} trained span{'' if len(spans) == 1 else 's'}"
    is_open = ' open="open"' if len(spans) <= MOST_OPEN_SPANS else ""
    return (
        f'<section class="row" id="row-{row.row_id}"><header><h3>{name}</h3><span class="soft">{facts}</span></header>'
        f'<div class="text" dir="auto">{text}</div>'
        f"<details{is_open}><summary>{count}</summary>{table}</details></section>"
    )


def _beginning(text: str) -> str:
    cut = text if len(text) <= BEGINS_CHARACTERS else f"{text[:BEGINS_CHARACTERS]}…"
    return f"<code>{_safe(cut).replace(chr(10), '↵')}</code>"


def _piece(piece: Piece) -> str:
    kinds = [name for name, is_so in (("on", piece.trained), ("special", piece.special)) if is_so]
    tokens = "".join(_tokens(piece))
    return f'<span class="{" ".join(kinds)}">{tokens}</span>' if kinds else f"<span>{tokens}</span>"


def _tokens(piece: Piece) -> Iterator[str]:
    """Elements, one of each token; those of one character are one."""
    first = piece.start
    for number, text in enumerate(piece.texts, start=piece.start):
        if not text and number + 1 < piece.end:
            continue
        where = f"token {number:,}" if first == number else f"tokens {first:,}–{number:,}"
        shown = _safe(text).replace("\n", "<u>↵</u>\n")
        yield f'<i title="{where}">{shown}</i>'
        first = number + 1


def _histogram(said: Mapping[str, Any]) -> str:
    lines = list(bins(said["histogram"]))
    most = max(count for *_, count in lines)
    rows = "".join(
        f'<tr><td class="n">{low:,}–{high:,}</td><td class="n">{count:,}</td><td class="bar">'
        + (f'<i style="width:{100 * count / most:.1f}%"></i>' if count else "")
        + "</td></tr>"
        for low, high, count in lines
    )
    head = '<tr><th class="n">Tokens</th><th class="n">Rows</th><th></th></tr>'
    return f"<table>{head}{rows}</table>"


def _counts(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    counts = said["counts"]
    yield f"{counts['read']:,}", "examples read"
    yield f"{counts['kept']:,}", "rows kept"
    if said["eval_rows"]:
        yield f"{said['eval_rows']:,}", "of them to evaluate on"
    yield from ((f"{counts[fate]:,}", f"left out: {why}") for fate, why in FATES.items())
    yield f"{counts['truncated']:,}", "cut to sequence_len"
    yield f"{counts['tokens']:,}", "tokens"
    yield f"{counts['trained_tokens']:,}", "of them trained"
    lengths = said["lengths"]
    yield f"{lengths['min']:,}", "tokens in the shortest row"
    yield f"{lengths['max']:,}", "tokens in the longest row"


def _bad(bad: Sequence[Mapping[str, Any]], count: int) -> str:
    if not bad:
        return ""
    rows = (
        (
            "" if row["row"] is None else f"{_safe(row['unit'])} {row['row']:,}",
            f'<code>{_safe(row["path"])}</code><br/><span class="bad">{_safe(row["reason"])}</span><br/>'
            f"<code>{_safe(row['excerpt'])}</code>",
        )
        for row in bad
    )
    told = "" if count <= len(bad) else f", the first {len(bad):,} of {count:,}"
    table = _table(rows, numbers=(0,))
    return f'<h2>Could not be read{told}</h2><div class="panel">{table}</div>'


def _table(
    rows: Iterable[Sequence[str]], *, header: Sequence[str] = (), numbers: Sequence[int] = ()
) -> str:
    """Cells are HTML."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [
            ' class="n"' if i in numbers else ' class="wide"' if i == len(cells) - 1 else ""
            for i in range(len(cells))
        ]
        parts = (f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    head = line(header, "th") if header else ""
    return f"<table>{head}{''.join(line(row, 'td') for row in rows)}</table>"
