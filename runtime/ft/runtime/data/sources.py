"""Where examples come from: files below the run folder, or the hub. Each keeps its place for messages.

They are read in chunks, and a chunk of JSON lines is parsed by whoever makes rows of it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import orjson
import pyarrow as pa
import pyarrow.parquet
from datasets import ReadInstruction

from ft.recipes.catalog import DATA_SUFFIXES
from ft.recipes.plan import DatasetPlan
from ft.recipes.runstore import INPUTS
from ft.runtime.data.row import EXCERPT_CHARACTERS, DataError, kind

DEFAULT_SPLIT = "train"
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words in the name of a file or folder that say so, as the hub's loader reads them."""

# What libraries write beside the data.
NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}

# At most this much of a file is in memory, and makes one chunk. A line may be longer.
CHUNK_ROWS = 1000
CHUNK_BYTES = 2 << 20

DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(" ") for byte in range(256))
LONG_NUMBER = b"0" * 19
"""So many digits may be a whole number that orjson would round; Python's own parser does not."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example and its place: `path` below the run folder or hub id, `row` from 1, in `unit`s."""

    path: str
    row: int
    unit: str
    value: Mapping[str, Any]

    def error(self, reason: str) -> DataError:
        try:
            excerpt = json.dumps(self.value, ensure_ascii=False, default=str)
        except RecursionError:
            excerpt = ""  # Nested too deep to be written out.
        return DataError(self.path, self.row, excerpt, reason, unit=self.unit)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring examples of one file. `numbers` are their rows, from 1, in `unit`s.

    `values`: lines of JSON as bytes if `is_json`, else objects, or the error that one is. `size`: bytes of the
    file, 0 if that is not known.
    """

    path: str
    unit: str
    numbers: Sequence[int]
    values: Sequence[Any]
    is_json: bool = False
    size: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def part(self, start: int, stop: int) -> Chunk:
        if (start, stop) == (0, len(self)):
            return self
        return replace(self, numbers=self.numbers[start:stop], values=self.values[start:stop])

    def examples(self) -> Iterator[Example | DataError]:
        """In their order; a broken one is an error in its place."""
        for number, value in zip(self.numbers, self.values, strict=True):
            if isinstance(value, DataError):
                yield value
                continue
            if self.is_json:
                try:
                    found = _loads(value)
                except (ValueError, RecursionError) as error:
                    yield self._error(number, value, _not_json(error))
                    continue
            else:
                found = value
            if isinstance(found, Mapping):
                yield Example(self.path, number, self.unit, found)
            else:
                begins = (
                    value if self.is_json else json.dumps(value, ensure_ascii=False, default=str)
                )
                yield self._error(number, begins, f"is {kind(found)}, expected an object")

    def _error(self, number: int, begins: str | bytes, reason: str) -> DataError:
        if isinstance(begins, bytes):
            begins = begins[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "backslashreplace")
        return DataError(self.path, number, begins.rstrip("\r\n"), reason, unit=self.unit)


def _loads(line: bytes) -> Any:
    """As `json.loads`, at twice its speed where both say the same. Raises: ValueError, RecursionError."""
    if LONG_NUMBER not in line.translate(DIGITS):
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            pass  # It may be NaN, which Python reads; if it is not JSON, Python's message says more.
    return json.loads(line.decode().rstrip("\r\n"))


def examples(spec: DatasetPlan, run_folder: Path) -> Iterator[Example]:
    """As `chunks`, one by one. Raises: DataError also for a broken row."""
    for chunk in chunks(spec, run_folder):
        for example in chunk.examples():
            if isinstance(example, DataError):
                raise example
            yield example


def chunks(spec: DatasetPlan, run_folder: Path) -> Iterator[Chunk]:
    """The examples of one data set in their order; files of a folder by name, `split` applied.

    A path `inputs/<name>` is a file or folder below `run_folder`; anything else is a hub id.
    Raises: DataError naming the file, if it cannot be read, or a split that is not there.
    ConnectionError if the hub cannot be reached; that may pass.
    """
    if not spec.path.startswith(f"{INPUTS}/"):
        yield from _hub(spec)
        return
    found = run_folder / spec.path
    if not found.exists():
        raise DataError(spec.path, None, "", "is not in the run folder")
    if (found / "state.json").is_file() or (found / "dataset_dict.json").is_file():
        parts = _saved(spec, found)
    else:
        parts = _files(spec, found, run_folder)
    yield from _sliced(spec, parts)


Reader = Callable[[], Iterator[Chunk]]


def _sliced(spec: DatasetPlan, parts: Mapping[str, Reader]) -> Iterator[Chunk]:
    """The part of the splits that `spec.split` asks for: `train`, `train[:10%]`, `train+test[5:]`."""
    if spec.split in parts:
        yield from parts[spec.split]()
        return
    try:
        instruction = ReadInstruction.from_spec(spec.split)
        wanted = {name.split("[")[0] for name in re.split(r"\s*\+\s*", spec.split)}
        lengths = {name: sum(map(len, parts[name]())) for name in wanted & parts.keys()}
        absolute = instruction.to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        names = ", ".join(f"`{name}`" for name in parts)
        reason = f"has no split `{spec.split}`; it has {names}"
        raise DataError(spec.path, None, "", reason) from error
    for part in absolute:
        yield from _between(parts[part.splitname](), part.from_, part.to)


def _between(found: Iterable[Chunk], start: int, stop: int) -> Iterator[Chunk]:
    """Examples `start` to `stop`, counted over all chunks."""
    at = 0
    for chunk in found:
        if at >= stop:
            return
        first, last = max(start - at, 0), min(stop - at, len(chunk))
        if first < last:
            yield chunk.part(first, last)
        at += len(chunk)


def _hub(spec: DatasetPlan) -> Iterator[Chunk]:
    yield from _numbered(spec.path, "row", from_hub(spec))


def from_hub(spec: DatasetPlan) -> Any:
    """A data set of the hub. Raises: DataError; ConnectionError if the hub cannot be reached, which may pass."""
    try:
        return datasets.load_dataset(spec.path, spec.name, split=spec.split)
    except ConnectionError as error:
        if not datasets.config.HF_HUB_OFFLINE:
            raise
        reason = "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"
        raise DataError(spec.path, None, "", reason) from error
    except (ValueError, FileNotFoundError) as error:
        raise DataError(spec.path, None, "", str(error).partition("\n")[0]) from error


def _saved(spec: DatasetPlan, folder: Path) -> dict[str, Reader]:
    """Splits of a folder that `save_to_disk` wrote."""
    try:
        loaded = datasets.load_from_disk(folder)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise DataError(spec.path, None, "", str(error).partition("\n")[0]) from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {DEFAULT_SPLIT: loaded}
    return {str(name): partial(_numbered, spec.path, "row", rows) for name, rows in splits.items()}


def _files(spec: DatasetPlan, found: Path, run_folder: Path) -> dict[str, Reader]:
    """Splits of a file or folder. A file whose name says no split, or that is alone, is `train`."""
    if found.is_dir():
        files = sorted(file for file in found.rglob("*") if _is_data(file.relative_to(found), file))
    else:
        files = [found]
    if not files:
        expected = ", ".join(DATA_SUFFIXES)
        raise DataError(spec.path, None, "", f"a folder without data files ({expected})")
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = _split_of(file.relative_to(found)) if found.is_dir() else DEFAULT_SPLIT
        splits.setdefault(name, []).append(file)

    return {name: partial(_read_all, tuple(paths), run_folder) for name, paths in splits.items()}


def _is_data(name: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    known = file.suffix.lower() in DATA_SUFFIXES and file.name not in NO_DATA
    return known and not hidden and file.is_file()


def _split_of(file: Path) -> str:
    """`data/test-00000-of-00001.parquet` -> "test"."""
    words = set(re.split(r"[^a-z]+", str(file.with_suffix("")).lower()))
    for split, names in SPLIT_NAMES.items():
        if words.intersection(names):
            return split
    return DEFAULT_SPLIT


def _read_all(files: Iterable[Path], run_folder: Path) -> Iterator[Chunk]:
    return chain.from_iterable(_read(file, run_folder) for file in files)


def _read(file: Path, run_folder: Path) -> Iterator[Chunk]:
    """The examples of one file, by its suffix."""
    path = file.relative_to(run_folder).as_posix()
    suffix = file.suffix.lower()
    try:
        if suffix in {".parquet", ".arrow"}:
            table = _parquet(file) if suffix == ".parquet" else _arrow(file)
            yield from _numbered(path, "row", table)
        elif suffix == ".csv":
            yield from _numbered(path, "row", _csv(file, path))
        elif suffix == ".txt":
            yield from _texts(file, path)
        elif suffix == ".json" and _begins_with(file) == b"[":
            yield from _numbered(path, "row", _json_list(file, path))
        else:
            yield from _json_lines(file, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, None, "", str(error).partition("\n")[0]) from error


def _numbered(path: str, unit: str, values: Iterable[Any]) -> Iterator[Chunk]:
    """Chunks of CHUNK_ROWS, of fewer where CHUNK_BYTES are full before."""
    number, size, some = 1, 0, []
    for value in values:
        some.append(value)
        size += _weight(value)
        if len(some) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield Chunk(path, unit, range(number, number + len(some)), some)
            number, size, some = number + len(some), 0, []
    if some:
        yield Chunk(path, unit, range(number, number + len(some)), some)


def _weight(value: object) -> int:
    """About how many bytes: characters of texts, a number as eight."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_weight, value.values()))
    if isinstance(value, list | tuple):
        # Numbers are all alike, and may be a million.
        return (
            8 * len(value)
            if value and isinstance(value[0], int | float)
            else sum(map(_weight, value))
        )
    return 8


def _lines(file: Path, path: str) -> Iterator[Chunk]:
    """Lines as bytes, numbers from 1; only a line feed ends one, a JSON text may hold other breaks."""
    with file.open("rb") as stream:
        number = 1
        while lines := stream.readlines(CHUNK_BYTES):
            size = sum(map(len, lines))
            if number == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            yield Chunk(path, "line", range(number, number + len(lines)), lines, size=size)
            number += len(lines)


def _json_lines(file: Path, path: str) -> Iterator[Chunk]:
    """One object a line; blank lines are skipped, and counted."""
    for chunk in _lines(file, path):
        pairs = [
            (number, line)
            for number, line in zip(chunk.numbers, chunk.values, strict=True)
            if not line.isspace()
        ]
        # A byte order mark alone is a blank line too.
        numbers, lines = [n for n, line in pairs if line], [line for _, line in pairs if line]
        if len(lines) == len(chunk):
            yield replace(chunk, is_json=True)
        elif lines:
            yield replace(chunk, numbers=numbers, values=lines, is_json=True)


def _texts(file: Path, path: str) -> Iterator[Chunk]:
    """One example a line, `text`."""
    for chunk in _lines(file, path):
        values: list[dict[str, str] | DataError] = []
        for number, line in zip(chunk.numbers, chunk.values, strict=True):
            try:
                values.append({"text": line.decode().rstrip("\r\n")})
            except UnicodeDecodeError as error:
                values.append(_not_utf8(path, number, line, error))
        yield replace(chunk, values=values)


def _not_utf8(path: str, number: int, line: bytes, error: UnicodeDecodeError) -> DataError:
    excerpt = line[:EXCERPT_CHARACTERS].decode("utf-8", "backslashreplace").rstrip("\r\n")
    return DataError(path, number, excerpt, f"is not UTF-8 at byte {error.start + 1}", unit="line")


def _json_list(file: Path, path: str) -> list[Any]:
    """One list of objects."""
    try:
        found: list[Any] = json.loads(file.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        excerpt = error.doc.split("\n")[error.lineno - 1]
        raise DataError(path, error.lineno, excerpt, _not_json(error), unit="line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, None, "", _not_json(error)) from error
    return found


def _not_json(error: ValueError | RecursionError) -> str:
    """The reason without a line number: within one line it would always be 1."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at character {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 at byte {error.start + 1}"
    return f"is not JSON: {error}"


def _begins_with(file: Path) -> bytes:
    """The first byte that is not white space or a byte order mark."""
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _csv(file: Path, path: str) -> Iterator[dict[str, str] | DataError]:
    """Records below the header, all values text. One may span lines, so records are counted."""
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        row = 0
        try:
            for row, record in enumerate(reader, start=1):
                if None in record or None in record.values():
                    fewer = "fewer" if None in record.values() else "more"
                    reason = f"has {fewer} values than the header has columns"
                    yield Example(path, row, "row", record).error(reason)
                else:
                    yield record
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(path, row + 1, "", f"is not CSV in UTF-8: {error}") from error


def _parquet(file: Path) -> Iterator[Any]:
    with pa.parquet.ParquetFile(file) as table:
        about = table.metadata
        groups = (about.row_group(number) for number in range(about.num_row_groups))
        rows = _rows_of_a_chunk(sum(group.total_byte_size for group in groups), about.num_rows)
        for batch in table.iter_batches(rows):
            yield from batch.to_pylist()


def _arrow(file: Path) -> Iterator[Any]:
    """Both kinds of Arrow file: with and without a footer."""
    with pa.memory_map(str(file)) as source:
        try:
            reader = pa.ipc.open_file(source)
            batches: Iterable[pa.RecordBatch] = map(
                reader.get_batch, range(reader.num_record_batches)
            )
        except pa.ArrowInvalid:
            batches = pa.ipc.open_stream(source)
        for batch in batches:
            rows = _rows_of_a_chunk(batch.nbytes, len(batch))
            for start in range(0, len(batch), rows):
                yield from batch.slice(start, rows).to_pylist()


def _rows_of_a_chunk(size: int, num_rows: int) -> int:
    """How many rows become Python objects at once, of `num_rows` that have `size` bytes together."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES * num_rows // max(size, 1)))
