"""The raw events of a slot: what is folded again where an edge of an exact window cuts a bucket.

They lie in the shard's variable-length area, one piece per slot, in offset order:

    int64       how many events, -1 where there was no room for all: then none are kept
    per event   event time, offset, words of bits (bit i: the ring's i-th input takes the event), a word per column
    then        the UTF-8 strings of all events, one after the other; a column of strings holds their lengths
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.inputs import Values
from tidemill_features.partials import Dtype, RawPlan

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_COUNT_BYTES = 8
_OVERFLOWED = (-1).to_bytes(_COUNT_BYTES, "little", signed=True)
_WORD_BYTES = 8
_NO_TEXT = b""


class Encoded(NamedTuple):
    """Events as they are kept: `rows` int64[events, row words], `texts` per event, None where there are no strings."""

    rows: Ints
    texts: list[bytes] | None


def appended(plan: RawPlan, raw: bytes | None, rows: Ints, texts: bytes) -> bytes:
    """Return a slot's raw events (None: none yet) with more; without room for all none are kept from now on."""
    if raw is None:
        raw = bytes(_COUNT_BYTES)
    elif overflowed(raw):
        return raw
    if len(raw) - _COUNT_BYTES + rows.nbytes + len(texts) > plan.room_bytes:
        return _OVERFLOWED
    events, words = rows.shape
    count = int.from_bytes(raw[:_COUNT_BYTES], "little")
    old = _COUNT_BYTES + count * words * _WORD_BYTES
    counted = (count + events).to_bytes(_COUNT_BYTES, "little")
    return b"".join((counted, raw[_COUNT_BYTES:old], rows.tobytes(), raw[old:], texts))


def overflowed(raw: bytes) -> bool:
    """Say whether a slot had no room for its events."""
    return raw == _OVERFLOWED


def encode(plan: RawPlan, event_us: Ints, offsets: Ints, inputs: Sequence[Values]) -> Encoded:
    """Return events as they are kept. `inputs`: the view's."""
    events = len(event_us)
    rows = np.zeros((events, plan.row_words), np.int64)
    rows[:, 0], rows[:, 1] = event_us, offsets
    bits = _bits(plan, inputs, events)
    first = 2 + plan.mask_words
    rows[:, 2:first] = np.packbits(bits, axis=1, bitorder="little").view("<i8")
    texts: list[bytes] | None = None
    for place, (number, dtype) in enumerate(plan.columns):
        values = inputs[number].values
        if dtype is not Dtype.STRING:
            rows[:, first + place] = values.view(np.int64) if dtype is Dtype.FLOAT else values
            continue
        found = _encoded(plan, place, values, bits)
        rows[:, first + place] = np.fromiter(map(len, found), np.int64, events)
        texts = found if texts is None else [one + other for one, other in zip(texts, found, strict=True)]
    return Encoded(rows, texts)


def sizes(plan: RawPlan, inputs: Sequence[Values], events: int) -> Ints:
    """Return the bytes that each event takes."""
    found = np.full(events, plan.row_words * _WORD_BYTES, np.int64)
    strings = [place for place, (_, dtype) in enumerate(plan.columns) if dtype is Dtype.STRING]
    if strings:
        bits = _bits(plan, inputs, events)
        for place in strings:
            texts = _encoded(plan, place, inputs[plan.columns[place][0]].values, bits)
            found += np.fromiter(map(len, texts), np.int64, events)
    return found


def _bits(plan: RawPlan, inputs: Sequence[Values], events: int) -> Bools:
    """Return bool[events, bits]: which inputs take each event."""
    bits = np.zeros((events, plan.mask_words * 64), np.bool_)
    for place, number in enumerate(plan.inputs):
        present = inputs[number].present
        bits[:, place] = True if present is None else present
    return bits


def _encoded(plan: RawPlan, place: int, values: Any, bits: Bools) -> list[bytes]:
    """Return a column's strings, empty where no input takes them."""
    inputs = [at for at, column in enumerate(plan.column_of) if column == place]
    taken: Any = bits[:, inputs].any(axis=1)
    return [
        value.encode("utf-8", "surrogatepass") if take else _NO_TEXT
        for value, take in zip(values, taken.tolist(), strict=True)
    ]


class Decoded(NamedTuple):
    """Raw events of one or more slots, slot by slot in offset order: `slot` says whose. `inputs`: the view's."""

    slot: Ints
    event_us: Ints
    offsets: Ints
    inputs: list[Values]


def times_of(plan: RawPlan, raw: bytes) -> tuple[Ints, Ints]:
    """Return the event times and offsets of a slot's events."""
    rows = _rows_of(plan, raw)
    return rows[:, 0], rows[:, 1]


def decode(plan: RawPlan, pieces: Sequence[tuple[bytes, Bools]]) -> Decoded:
    """Return events of several slots, none of which overflowed: what each keeps, and which of its events are wanted."""
    parts = [_rows_of(plan, raw)[wanted] for raw, wanted in pieces]
    rows = np.concatenate(parts)
    slot = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    first = 2 + plan.mask_words
    bits = np.unpackbits(
        np.ascontiguousarray(rows[:, 2:first]).view(np.uint8), axis=1, count=len(plan.inputs), bitorder="little"
    ).astype(np.bool_)
    strings = [place for place, (_, dtype) in enumerate(plan.columns) if dtype is Dtype.STRING]
    texts = _texts_of(plan, pieces, strings)
    columns: list[Any] = []
    for place, (_, dtype) in enumerate(plan.columns):
        if dtype is Dtype.STRING:
            columns.append(texts[:, strings.index(place)])
            continue
        column = np.ascontiguousarray(rows[:, first + place])
        columns.append(column.view(np.float64) if dtype is Dtype.FLOAT else column)
    inputs = [Values(None, None)] * (max(plan.inputs, default=-1) + 1)
    for place, number in enumerate(plan.inputs):
        column_of = plan.column_of[place]
        inputs[number] = Values(None if column_of < 0 else columns[column_of], bits[:, place])
    return Decoded(slot, rows[:, 0], rows[:, 1], inputs)


def _rows_of(plan: RawPlan, raw: bytes) -> Ints:
    count = int.from_bytes(raw[:_COUNT_BYTES], "little", signed=True)
    return np.frombuffer(raw, "<i8", count * plan.row_words, _COUNT_BYTES).reshape(count, plan.row_words)


def _texts_of(plan: RawPlan, pieces: Sequence[tuple[bytes, Bools]], strings: Sequence[int]) -> Any:
    """Return object[events, string columns]; of an event that no input of the column takes the empty string."""
    found: list[str] = []
    if strings:
        words = [2 + plan.mask_words + place for place in strings]
        for raw, wanted in pieces:
            rows = _rows_of(plan, raw)
            ends = np.cumsum(rows[:, words]).reshape(len(rows), len(words)) + (_COUNT_BYTES + rows.nbytes)
            starts = ends - rows[:, words]
            bounds = zip(starts[wanted].ravel().tolist(), ends[wanted].ravel().tolist(), strict=True)
            found += [raw[start:end].decode("utf-8", "surrogatepass") for start, end in bounds]
    texts = np.empty(len(found), object)
    texts[:] = found
    return texts.reshape(-1, max(1, len(strings)))
