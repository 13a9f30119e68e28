"""The first rows of local data: what a run would certainly refuse is said before anything travels.

When in doubt, nothing is said: what is read here is the beginning of a file, and only of JSON.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ft.recipes.catalog import DATA_SUFFIXES, FORMATS
from ft.recipes.references import Reference
from ft.recipes.resolve import DEFAULT_ROLES
from ft.recipes.schema.dataset import DatasetKeys, UserDefinedType

SAMPLE_BYTES: Final = 1 << 20
SAMPLE_ROWS: Final = 5000
SHOWN_ROWS: Final = 3
MAX_ENTRIES: Final = 10_000
"""Of a folder; a larger one is left to the run."""
MAX_NAMES: Final = 8
MAX_NAME_CHARACTERS: Final = 40
BEGINNING_BYTES: Final = 4096
"""In which the runtime looks for the bracket that makes a `.json` file a list."""

NO_DATA: Final = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
SAVED: Final = ("state.json", "dataset_dict.json")
"""What `save_to_disk` writes beside the data, and by what the runtime knows such a folder."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is no JSON, and why."""

    reason: str


Rows = Iterator[tuple[str, object]]
"""`line 3` or `row 3`, and the value there or Unreadable."""

TEXT_COLUMNS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    **dict.fromkeys(
        (
            "alpaca",
            "alpaca:chat",
            "alpaca:chatml",
            "alpaca:instruct",
            "alpaca:phi",
            "alpaca_chat",
            "alpaca_chat.load_concise",
            "alpaca_chat.load_no_prompt",
            "alpaca_instruct",
            "alpaca_instruct.load_no_prompt",
        ),
        (("instruction", "output"), ("input",)),
    ),
    **dict.fromkeys(
        ("alpaca_w_system", "alpaca_w_system.load_chat"),
        (("instruction", "output"), ("input", "system")),
    ),
    **dict.fromkeys(
        ("alpaca_w_system.load_open_orca", "alpaca_w_system.load_open_orca_chatml", "orcamini"),
        (("question", "response"), ("system_prompt",)),
    ),
    "alpaca_chat.load_camel_ai": (("message_1", "message_2"), ()),
    "alpaca_chat.load_qa": (("question", "answer"), ()),
    "context_qa": (("article", "question", "answer"), ()),
    "context_qa.load_404": (("article", "unanswerable_question"), ()),
    "context_qa.load_v2": (("context", "question", "answer"), ()),
    "concisechoice": (("question",), ()),
    "explainchoice": (("question",), ()),
    "gpteacher": (("instruction", "response"), ("input",)),
    "jeopardy": (("question", "answer"), ("category",)),
    "oasst": (("INSTRUCTION", "RESPONSE"), ()),
    "summarizetldr": (("article", "summary"), ()),
}
"""Format -> columns that hold text in every row, and columns that may be missing or null."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")


def complaints(
    reference: Reference, path: Path, dataset: DatasetKeys | None = None
) -> tuple[str, ...]:
    """Why a run would refuse what lies at `path`; whole sentences. `dataset` belongs to kind `data`."""
    kind = reference.kind
    name = _shown(path.name or str(path), limit=200)
    if not path.is_file() and not path.is_dir():
        return (f"{name} is neither a file nor a folder.",)
    try:
        if kind == "data":
            return tuple(_data(path, name, dataset))
        if kind == "model" and path.is_dir() and next(path.iterdir(), None) is None:
            return (f"{name} is an empty folder.",)
    except OSError as error:
        return (f"{name} cannot be read: {error.strerror}.",)
    if reference.key == ("base_model",) and path.is_file():
        return (f"{name} is a file, expected the folder of a model.",)
    if kind == "template" and path.is_dir():
        return (f"{name} is a folder, expected a file with a template.",)
    return ()


def _data(path: Path, name: str, dataset: DatasetKeys | None) -> Iterator[str]:
    if path.is_dir():
        yield from _folder(path, name)
    elif path.stat().st_size == 0:
        yield f"{name} is empty: no rows to train on."
    elif path.suffix.lower() in {".json", ".jsonl"}:
        yield from _file(path, name, dataset)


def _folder(path: Path, name: str) -> Iterator[str]:
    """Whether there is a data file with something in it, by name and size."""
    if any((path / saved).is_file() for saved in SAVED):
        return
    entries = list(islice(path.rglob("*"), MAX_ENTRIES))
    files = [entry for entry in entries if _is_data(entry.relative_to(path), entry)]
    if len(entries) == MAX_ENTRIES or any(file.stat().st_size for file in files):
        return
    if files:
        yield f"{name}: all data files in it are empty."
    else:
        yield f"{name} is a folder without data files ({', '.join(DATA_SUFFIXES)})."


def _is_data(name: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    known = file.suffix.lower() in DATA_SUFFIXES and file.name not in NO_DATA
    return known and not hidden and file.is_file()


def _file(path: Path, name: str, dataset: DatasetKeys | None) -> Iterator[str]:
    with path.open("rb") as stream:
        head = stream.read(SAMPLE_BYTES)
        whole = not stream.read(1)
    begins = head[:BEGINNING_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    is_list = path.suffix.lower() == ".json" and begins == b"["
    read_list = _list if whole else _beginning_of_list
    rows = read_list(head) if is_list else _lines(head, whole=whole)
    first = list(islice(rows, SAMPLE_ROWS))
    if not first and whole:
        yield f"{name} has no rows to train on."
    found = [
        f"{name}, {place}: {reason}"
        for place, value in first
        if (reason := _complaint(value, dataset)) is not None
    ]
    yield from found[:SHOWN_ROWS]
    if len(found) > SHOWN_ROWS:
        more = len(found) - SHOWN_ROWS
        yield f"{name}: {more} more of its first {len(first)} rows cannot be used."


def _lines(head: bytes, *, whole: bool) -> Rows:
    """JSON Lines: a line that is not blank is a row. The last one counts only if it is complete."""
    lines = head.split(b"\n")
    for number, line in enumerate(lines if whole else lines[:-1], start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield f"line {number}", Unreadable(f"is not UTF-8 at byte {error.start + 1}.")
            continue
        if text.strip():
            yield f"line {number}", _parsed(text.rstrip("\r"))


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Unreadable(f"is not JSON: {error.msg} at character {error.colno}.")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"is not JSON: {error}.")


def _list(content: bytes) -> Rows:
    """The elements of a whole file that holds one JSON list."""
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        yield f"line {error.lineno}", Unreadable(f"is not JSON: {error.msg}.")
    except (ValueError, RecursionError) as error:
        yield "row 1", Unreadable(f"is not JSON: {error}.")
    else:
        yield from ((f"row {number}", value) for number, value in enumerate(values, start=1))


def _beginning_of_list(head: bytes) -> Rows:
    """The elements of one JSON list, as far as `head` goes. What is wrong with its form is left to the run."""
    text = codecs.getincrementaldecoder("utf-8-sig")(errors="ignore").decode(head)
    at, decoder = text.index("[") + 1, json.JSONDecoder()
    for number in range(1, SAMPLE_ROWS + 1):
        try:
            value, at = decoder.raw_decode(text, _after_space(text, at))
        except (ValueError, RecursionError):
            return
        at = _after_space(text, at)
        if text[at : at + 1] not in {",", "]"}:
            return
        yield f"row {number}", value
        if text[at] == "]":
            return
        at += 1


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _complaint(value: object, dataset: DatasetKeys | None) -> str | None:
    """What the runtime's format would refuse about a row; None also when that is not sure."""
    if isinstance(value, Unreadable):
        return value.reason
    if not isinstance(value, dict):
        return f"is {_kind(value)}, expected an object."
    # Another split may leave this row out.
    # A format that does not run yet is not read here either.
    if dataset is None or dataset.split not in {None, "train"}:
        return None
    if dataset.type is None:
        return _tokens(value)
    if not isinstance(dataset.type, UserDefinedType) and dataset.type not in FORMATS:
        return None
    if dataset.type == "completion":
        return _text(value, dataset.field or "text", way_out="`field`")
    if dataset.type == "input_output":
        return _segments(value)
    if dataset.type == "chat_template":
        return _conversation(value, dataset)
    return next(filter(None, (_text(value, column) for column in _columns(value, dataset))), None)


def _columns(row: Mapping[str, Any], dataset: DatasetKeys) -> Iterator[str]:
    """Columns that must hold text."""
    own = dataset.type
    if isinstance(own, UserDefinedType):
        required: tuple[str, ...] = (
            own.field_instruction or "instruction",
            own.field_output or "output",
        )
        optional: tuple[str, ...] = (own.field_input or "input", own.field_system or "system")
    else:
        required, optional = TEXT_COLUMNS.get(str(own), ((), ()))
    yield from required
    yield from (column for column in optional if row.get(column) is not None)


def _text(row: Mapping[str, Any], column: str, *, way_out: str = "") -> str | None:
    if column not in row:
        return _no_column(row, column, way_out)
    if isinstance(row[column], str):
        return None
    return f"`{column}` holds {_kind(row[column])}, expected text."


def _no_column(row: Mapping[str, Any], column: str, way_out: str) -> str:
    hint = f" {way_out} names another one." if way_out and row else ""
    return f"has no column `{column}`; its columns: {_names(row)}.{hint}"


def _tokens(row: Mapping[str, Any]) -> str | None:
    """Without a `type` rows are tokens."""
    for column in ("input_ids", "labels"):
        if column not in row:
            return f"{_no_column(row, column, '')} `type:` is not set: say how a row is read."
        if not isinstance(row[column], list):
            return f"`{column}` holds {_kind(row[column])}, expected a list of numbers."
    return None


def _segments(row: Mapping[str, Any]) -> str | None:
    if "segments" not in row:
        return _no_column(row, "segments", "")
    segments = row["segments"]
    if not isinstance(segments, list):
        return f"`segments` holds {_kind(segments)}, expected a list."
    for number, segment in enumerate(segments, start=1):
        if not isinstance(segment, dict):
            return f"segment {number} is {_kind(segment)}, expected an object."
        if not isinstance(segment.get("label"), bool):
            label = _kind(segment.get("label"))
            return f"segment {number}: `label` holds {label}, expected true or false."
        if not isinstance(segment.get("text"), str):
            return f"segment {number}: `text` holds {_kind(segment.get('text'))}, expected text."
    return None


def _conversation(row: Mapping[str, Any], dataset: DatasetKeys) -> str | None:
    column = dataset.field_messages or "messages"
    if column not in row:
        return _no_column(row, column, "`field_messages`")
    found = row[column]
    if isinstance(found, str):  # A list as JSON text.
        found = _parsed(found)
        if isinstance(found, Unreadable):
            return f"`{column}` holds text that is not JSON."
    if not isinstance(found, list):
        return f"`{column}` holds {_kind(found)}, expected a list."
    for number, message in enumerate(found, start=1):
        if not isinstance(message, dict):
            return f"`{column}`: item {number} is {_kind(message)}, expected an object."
        reason = _message(message, dataset)
        if reason is not None:
            return f"message {number}: {reason}"
    return None


def _message(message: Mapping[str, Any], dataset: DatasetKeys) -> str | None:
    properties = dataset.message_property_mappings or {}
    role_name, content_name = properties.get("role", "role"), properties.get("content", "content")
    for name in (role_name, content_name):
        if name not in message and not (name == content_name and _may_be_silent(message, dataset)):
            mend = "`message_property_mappings` names another one."
            return f"has no `{name}`; its properties: {_names(message)}. {mend}"
    role, content = message.get(role_name), message.get(content_name)
    known = [name for names in (dataset.roles or DEFAULT_ROLES).values() for name in names]
    if not isinstance(role, str):
        return f"`{role_name}` holds {_kind(role)}, expected text."
    if role not in known:
        listed = ", ".join(f"`{name}`" for name in known)
        return f"unknown role `{_shown(role)}`. Known roles: {listed}; add it under `roles:`."
    if isinstance(content, list):
        return _parts(content, content_name)
    if isinstance(content, str) or (content is None and _may_be_silent(message, dataset)):
        return None
    return f"`{content_name}` holds {_kind(content)}, expected text."


def _parts(parts: list[Any], name: str) -> str | None:
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict):
            return f"`{name}`: item {number} is {_kind(part)}, expected an object."
        kind = part.get("type")
        if isinstance(kind, str) and kind != "text":
            said = f"`{name}`: part {number} is of type `{_shown(kind)}`"
            return f"{said}; only text can be trained on yet."
    return None


def _may_be_silent(message: Mapping[str, Any], dataset: DatasetKeys) -> bool:
    """Whether there may be calls of tools, or thoughts: they can come without words."""
    properties = dataset.message_property_mappings or {}
    thoughts = (dataset.field_thinking, dataset.template_thinking_key, "reasoning_content")
    others = {theirs for ours, theirs in properties.items() if ours not in {"role", "content"}}
    return any(message.get(name) for name in ("tool_calls", *others, *filter(None, thoughts)))


def _names(row: Mapping[str, Any]) -> str:
    names = [f"`{_shown(name)}`" for name in islice(row, MAX_NAMES)]
    more = [f"{len(row) - MAX_NAMES} more"] if len(row) > MAX_NAMES else []
    return ", ".join(names + more) or "none"


def _shown(text: str, *, limit: int = MAX_NAME_CHARACTERS) -> str:
    """Text of a file as a terminal can take it."""
    short = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return short if short.isprintable() else ascii(short)


def _kind(value: object) -> str:
    """The name of a JSON kind: `[1]` -> "a list"."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    if isinstance(value, int | float):
        return "a number"
    return {"str": "text", "list": "a list", "dict": "an object"}[type(value).__name__]
