"""Where examples come from: files below the run folder, or the hub. Each keeps its place for messages."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
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

# At most this many parsed rows of a parquet or Arrow file are in memory.
ROWS_PER_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """One example and its place: `path` below the run folder or hub id, `row` from 1, in `unit`s."""

    path: str
    row: int
    unit: str
    value: Mapping[str, Any]

    def error(self, reason: str) -> DataError:
        excerpt = json.dumps(self.value, ensure_ascii=False, default=str)
        return DataError(self.path, self.row, excerpt, reason, unit=self.unit)


def examples(spec: DatasetPlan, run_folder: Path) -> Iterator[Example]:
    """The examples of one data set in their order; files of a folder by name, `split` applied.

    A path `inputs/<name>` is a file or folder below `run_folder`; anything else is a hub id.
    Raises: DataError naming file and row, for a file that cannot be read, a broken row, or a split
    that is not there. ConnectionError if the hub cannot be reached; that may pass.
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


def _sliced(
    spec: DatasetPlan, parts: Mapping[str, Callable[[], Iterator[Example]]]
) -> Iterator[Example]:
    """The part of the splits that `spec.split` asks for: `train`, `train[:10%]`, `train+test[5:]`."""
    if spec.split in parts:
        yield from parts[spec.split]()
        return
    try:
        instruction = ReadInstruction.from_spec(spec.split)
        wanted = {name.split("[")[0] for name in re.split(r"\s*\+\s*", spec.split)}
        lengths = {name: sum(1 for _ in parts[name]()) for name in wanted & parts.keys()}
        absolute = instruction.to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        names = ", ".join(f"`{name}`" for name in parts)
        reason = f"has no split `{spec.split}`; it has {names}"
        raise DataError(spec.path, None, "", reason) from error
    for part in absolute:
        yield from islice(parts[part.splitname](), part.from_, part.to)


def _hub(spec: DatasetPlan) -> Iterator[Example]:
    try:
        loaded = datasets.load_dataset(spec.path, spec.name, split=spec.split)
    except ConnectionError as error:
        if not datasets.config.HF_HUB_OFFLINE:
            raise
        reason = "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"
        raise DataError(spec.path, None, "", reason) from error
    except (ValueError, FileNotFoundError) as error:
        raise DataError(spec.path, None, "", str(error).partition("\n")[0]) from error
    yield from _numbered(spec.path, "row", loaded)


def _saved(spec: DatasetPlan, folder: Path) -> dict[str, Callable[[], Iterator[Example]]]:
    """Splits of a folder that `save_to_disk` wrote."""
    try:
        loaded = datasets.load_from_disk(folder)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise DataError(spec.path, None, "", str(error).partition("\n")[0]) from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {DEFAULT_SPLIT: loaded}
    return {str(name): partial(_numbered, spec.path, "row", rows) for name, rows in splits.items()}


def _files(
    spec: DatasetPlan, found: Path, run_folder: Path
) -> dict[str, Callable[[], Iterator[Example]]]:
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


def _read_all(files: Iterable[Path], run_folder: Path) -> Iterator[Example]:
    return chain.from_iterable(_read(file, run_folder) for file in files)


def _read(file: Path, run_folder: Path) -> Iterator[Example]:
    """The examples of one file, by its suffix."""
    path = file.relative_to(run_folder).as_posix()
    suffix = file.suffix.lower()
    try:
        if suffix in {".parquet", ".arrow"}:
            table = _parquet(file) if suffix == ".parquet" else _arrow(file)
            yield from _numbered(path, "row", table)
        elif suffix == ".csv":
            yield from _csv(file, path)
        elif suffix == ".txt":
            yield from (Example(path, n, "line", {"text": text}) for n, text in _lines(file, path))
        elif suffix == ".json" and _begins_with(file) == b"[":
            yield from _json_list(file, path)
        else:
            yield from _json_lines(file, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(path, None, "", str(error).partition("\n")[0]) from error


def _numbered(path: str, unit: str, values: Iterable[Any]) -> Iterator[Example]:
    for row, value in enumerate(values, start=1):
        if not isinstance(value, Mapping):
            excerpt = json.dumps(value, ensure_ascii=False, default=str)
            raise DataError(path, row, excerpt, f"is {kind(value)}, expected an object", unit=unit)
        yield Example(path, row, unit, value)


def _lines(file: Path, path: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1; only a line feed ends one, a JSON text may hold other breaks."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                excerpt = (
                    line[:EXCERPT_CHARACTERS].decode("utf-8", "backslashreplace").rstrip("\r\n")
                )
                reason = f"is not UTF-8 at byte {error.start + 1}"
                raise DataError(path, number, excerpt, reason, unit="line") from error
            yield number, text.rstrip("\r\n")


def _json_lines(file: Path, path: str) -> Iterator[Example]:
    """One object a line; blank lines are skipped, and counted."""
    for number, text in _lines(file, path):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(path, number, text, _not_json(error), unit="line") from error
        if not isinstance(value, dict):
            raise DataError(
                path, number, text, f"is {kind(value)}, expected an object", unit="line"
            )
        yield Example(path, number, "line", value)


def _json_list(file: Path, path: str) -> Iterator[Example]:
    """One list of objects."""
    try:
        values = json.loads(file.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        excerpt = error.doc.split("\n")[error.lineno - 1]
        raise DataError(path, error.lineno, excerpt, _not_json(error), unit="line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, None, "", _not_json(error)) from error
    yield from _numbered(path, "row", values)


def _not_json(error: ValueError | RecursionError) -> str:
    """The reason without a line number: within one line it would always be 1."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at character {error.colno}"
    return f"is not JSON: {error}"


def _begins_with(file: Path) -> bytes:
    """The first byte that is not white space or a byte order mark."""
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _csv(file: Path, path: str) -> Iterator[Example]:
    """Rows below the header, all values text. `row` counts records: one may span lines."""
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        row = 0
        try:
            for row, record in enumerate(reader, start=1):
                example = Example(path, row, "row", record)
                if None in record or None in record.values():
                    fewer = "fewer" if None in record.values() else "more"
                    raise example.error(f"has {fewer} values than the header has columns")
                yield example
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(path, row + 1, "", f"is not CSV in UTF-8: {error}") from error


def _parquet(file: Path) -> Iterator[Any]:
    with pa.parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(ROWS_PER_BATCH):
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
            yield from batch.to_pylist()
