"""Rows of an archived table as the engine's columns: in offset order, up to a limit, converted as they are used."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.expressions import Column
from tidemill_features.expressions_vector import DTYPES, NEUTRAL

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_NO_LIMIT = np.iinfo(np.int64).max


class LogRows:
    """Some rows of a table, in an order."""

    def __init__(self, table: pa.Table | None, order: Ints) -> None:
        self._table = table
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @classmethod
    def before(cls, table: pa.Table | None, limits: Mapping[int, int]) -> "LogRows":
        """Return the rows before each partition's limit, by (partition, offset)."""
        if table is None:
            return cls(None, np.empty(0, dtype=np.int64))
        partition, offset = _ints(table["_partition"]), _ints(table["_offset"])
        limit = np.empty(len(partition), dtype=np.int64)
        for number in np.unique(partition):
            limit[partition == number] = limits.get(int(number), _NO_LIMIT)
        order = np.lexsort((offset, partition))
        return cls(table, order[(offset < limit)[order]])

    def filtered(self, keep: Bools) -> "LogRows":
        """Return the rows that a mask keeps."""
        return LogRows(self._table, self._order[keep])

    def ints(self, name: str) -> Ints:
        """Return a column without nulls."""
        return np.empty(0, dtype=np.int64) if self._table is None else _ints(self._table[name])[self._order]

    def raw(self, name: str) -> pa.Array:
        """Return a column of strings without nulls, as Arrow keeps it."""
        if self._table is None:
            return pa.array([], pa.string())
        return _whole(self._table[name]).take(pa.array(self._order))

    def strings(self, name: str) -> list[str]:
        """Return a column of strings without nulls."""
        found: list[str] = self.raw(name).to_pylist()
        return found

    def coded(self, name: str) -> tuple[list[str], Ints]:
        """Return a column of strings as its distinct words and a place among them per row."""
        encoded = self.raw(name).dictionary_encode()
        return encoded.dictionary.to_pylist(), np.asarray(encoded.indices, dtype=np.int64)

    def codes(self, name: str) -> Ints:
        """Return equal numbers for equal strings."""
        return np.asarray(self.raw(name).dictionary_encode().indices, dtype=np.int64)

    def column(self, name: str, kind: int) -> Column:
        """Return a column as expressions take it: neutral under nulls, strings shared, instants as microseconds.

        A field that the table does not have yet is null in every row.
        """
        if self._table is None or name not in self._table.column_names:
            nulls = np.ones(len(self._order), dtype=np.bool_)
            return Column(np.full(len(nulls), NEUTRAL[kind], dtype=DTYPES[kind]), nulls)
        raw = _whole(self._table[name]).take(pa.array(self._order))
        nulls = np.asarray(raw.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
        if kind == definition.FIELD_TYPE_STRING:
            encoded = raw.fill_null("").dictionary_encode()
            words = np.array([*encoded.dictionary.to_pylist(), None], dtype=np.object_)[:-1]
            return Column(words[np.asarray(encoded.indices)], nulls)
        if kind == definition.FIELD_TYPE_TIMESTAMP:
            raw = raw.cast(pa.int64())
        values = raw.fill_null(NEUTRAL[kind]).to_numpy(zero_copy_only=False)
        return Column(np.asarray(values, dtype=DTYPES[kind]), nulls)


def _ints(column: Any) -> Ints:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _whole(column: Any) -> Any:
    """Return a column as one array; strings with wide offsets, since narrow ones end at 2 GiB."""
    kind = pa.large_string() if pa.types.is_string(column.type) else column.type
    whole = column.cast(kind).combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
