"""Rows of an archived table as the engine's columns: in offset order, up to a limit, converted as they are used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.admission import Repeats, Rules
from tidemill_features.columns import Coded
from tidemill_features.expressions import Column
from tidemill_features.expressions_vector import DTYPES, NEUTRAL
from tidemill_features.layout import EMPTY

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

        A field that the table does not have yet, or has as another type, is null in every row.
        """
        if self._table is None or not _holds(self._table, name, kind):
            nulls = np.ones(len(self._order), dtype=np.bool_)
            return Column(np.full(len(nulls), NEUTRAL[kind], dtype=DTYPES[kind]), nulls)
        raw = _whole(self._table[name]).take(pa.array(self._order))
        nulls = np.asarray(raw.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
        if kind == definition.FIELD_TYPE_STRING:
            words, codes = _coded(raw)
            return Column(words[codes], nulls)
        if kind == definition.FIELD_TYPE_TIMESTAMP:
            raw = raw.cast(pa.int64())
        values = raw.fill_null(NEUTRAL[kind]).to_numpy(zero_copy_only=False)
        return Column(np.asarray(values, dtype=DTYPES[kind]), nulls)

    def texts(self, name: str) -> tuple[Column, Coded | None]:
        """Return a column of strings as `column` does, and by its words; None for a field that is not there yet."""
        if self._table is None or not _holds(self._table, name, definition.FIELD_TYPE_STRING):
            return self.column(name, definition.FIELD_TYPE_STRING), None
        raw = self.raw(name)
        coded = _coded(raw)
        nulls = np.asarray(raw.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
        return Column(coded.words[coded.codes], nulls), coded


class Strings(Sequence[str]):
    """Strings as Arrow keeps them, made into Python's when they are asked for."""

    def __init__(self, raw: pa.Array) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> "Strings": ...

    def __getitem__(self, at: int | slice) -> "str | Strings":
        if isinstance(at, slice):
            return Strings(self._raw[at])
        found: str = self._raw[at].as_py()
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw.to_pylist())


class Recent:
    """One partition's newest rows, as far as later ones may repeat them."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._identities = pa.array([], pa.large_string())
        self._offset = self._event_us = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offset)

    def follow(self, identities: pa.Array, offset: Ints, event_us: Ints) -> Repeats:
        """Return which of the next rows, in offset order, are repeats, and remember them.

        `identities`: as `LogRows.raw` gives them.
        """
        known = len(self._offset)
        identities = pa.concat_arrays([self._identities, identities])
        offset, event_us = np.concatenate((self._offset, offset)), np.concatenate((self._event_us, event_us))
        before = _before(identities)[known:]
        first, again = before < 0, np.maximum(before, 0)
        found = Repeats(np.full(len(before), EMPTY), np.full(len(before), EMPTY))
        if not first.all():
            found = Repeats(np.where(first, EMPTY, offset[again]), np.where(first, EMPTY, event_us[again]))
        if len(offset):
            # Rows that are older lie between them too: without these, an identity's last row would be another.
            near = offset >= offset[-1] - self._rules.dedup_offsets
            near &= event_us >= event_us.max() - self._rules.dedup_window_us
            kept = slice(int(np.argmax(near)) if near.any() else len(near), None)
            self._identities, self._offset, self._event_us = identities[kept], offset[kept], event_us[kept]
        return found


def _before(strings: pa.Array) -> Ints:
    """Return the place of the same string before each; -1 where there is none."""
    before = np.full(len(strings), -1)
    coded = strings.dictionary_encode()
    if len(coded.dictionary) < len(strings):
        codes = np.asarray(coded.indices)
        order = np.argsort(codes, kind="stable")
        again = np.flatnonzero(codes[order[1:]] == codes[order[:-1]])
        before[order[again + 1]] = order[again]
    return before


def _coded(raw: pa.Array) -> Coded:
    encoded = raw.fill_null("").dictionary_encode()
    words = np.array([*encoded.dictionary.to_pylist(), None], dtype=np.object_)[:-1]
    return Coded(words, np.asarray(encoded.indices, dtype=np.int64))


# As which types a table may keep a field: integers of one that became a float, too, until the next commit.
_KEPT_AS: Mapping[int, Callable[[pa.DataType], bool]] = {
    definition.FIELD_TYPE_BOOL: pa.types.is_boolean,
    definition.FIELD_TYPE_INT64: pa.types.is_int64,
    definition.FIELD_TYPE_FLOAT64: lambda kept: pa.types.is_float64(kept) or pa.types.is_int64(kept),
    definition.FIELD_TYPE_STRING: lambda kept: pa.types.is_string(kept) or pa.types.is_large_string(kept),
    definition.FIELD_TYPE_TIMESTAMP: pa.types.is_timestamp,
}


def _holds(table: pa.Table, name: str, kind: int) -> bool:
    """Say whether a table has a field as it is now: one that came back as another type, from the next commit on."""
    return name in table.column_names and _KEPT_AS[kind](table.schema.field(name).type)


def _ints(column: Any) -> Ints:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _whole(column: Any) -> Any:
    """Return a column as one array; strings with wide offsets, since narrow ones end at 2 GiB."""
    kind = pa.large_string() if pa.types.is_string(column.type) else column.type
    whole = column.cast(kind).combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
