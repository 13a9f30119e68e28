"""Rows of tokens in Arrow: four bytes a token, never a Python object for one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from ft.runtime.data.rows import Made

SCHEMA = pa.schema(
    {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32()), "row_id": pa.int64()}
)

# Offsets in one batch are 32 bits wide.
BATCH_TOKENS = 1 << 30


class Table:
    """Rows as they come, numbered from 0: kept in memory, or written to a file."""

    def __init__(self, path: Path | None = None) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._sink = None if path is None else pa.OSFile(str(path), "wb")
        self._writer = None if self._sink is None else pa.ipc.new_stream(self._sink, SCHEMA)
        self._digest = hashlib.sha256()
        self.num_rows = 0

    def add(self, made: Made) -> None:
        """Rows of one chunk. A chunk is a few megabytes, so its tokens are far below 2^31."""
        if not len(made.lengths):
            return
        assert len(made.ids) < BATCH_TOKENS
        offsets = pa.array(np.concatenate([[0], np.cumsum(made.lengths)]).astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(values))
            for values in (made.ids, made.labels)
        ]
        count = len(made.lengths)
        numbers = pa.array(np.arange(self.num_rows, self.num_rows + count))
        batch = pa.record_batch([*columns, numbers], schema=SCHEMA)
        self.num_rows += count
        if self._writer is not None:
            self._writer.write_batch(batch)
            return
        for part in (made.lengths, made.ids, made.labels):
            self._digest.update(np.ascontiguousarray(part).data)
        self._batches.append(batch)

    def dataset(self) -> datasets.Dataset:
        """In memory, with a fingerprint of the content, so that the same rows are the same data set."""
        table = datasets.table.InMemoryTable(pa.Table.from_batches(self._batches, SCHEMA))
        return datasets.Dataset(table, fingerprint=self._digest.hexdigest()[:16])

    def close(self) -> None:
        """Everything is on the disk afterwards."""
        if self._writer is not None and self._sink is not None:
            self._writer.close()
            self._sink.close()


def renumbered(rows: datasets.Dataset, first: int) -> datasets.Dataset:
    """The same rows, with numbers that begin at `first`; nothing else is copied."""
    numbers = pa.array(np.arange(first, first + len(rows)))
    column = SCHEMA.get_field_index("row_id")
    table = rows.data.table.set_column(column, SCHEMA.field(column), numbers)
    name = hashlib.sha256(f"{rows._fingerprint} from {first}".encode()).hexdigest()[:16]
    return datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint=name)


def opened(path: Path, fingerprint: str) -> datasets.Dataset:
    """Rows of a file, mapped into memory."""
    table = datasets.table.MemoryMappedTable.from_file(str(path))
    return datasets.Dataset(table, fingerprint=fingerprint)
