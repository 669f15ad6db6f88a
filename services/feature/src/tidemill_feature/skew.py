"""Whether training sees what serving saw: served features beside those of the offline twin, bit for bit; pure.

Sampled by key: the hash of its join key alone decides whether a prediction belongs to the sample, so that every
replica, every rerun and every period looks at the same keys.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.feature.v1 import feature_pb2
from tidemill_features.finalise import HEAD_EXCLUDED_BIT, HOP_ACCURACY_BIT, STATUS_BITS
from tidemill_features.vector import PipelineVector, VectorRows

from tidemill_feature.schemas import Schema

Bools = NDArray[np.bool_]
Statuses = NDArray[np.uint8]

_HASHES = 2**64
MOST_PERIODS = 7


class Period(NamedTuple):
    """`as_of` of predictions, µs: from (inclusive) to (exclusive)."""

    from_us: int
    until_us: int


def due(newest_us: int, done_us: int, every_us: int) -> Period | None:
    """Return what is to be measured once predictions have come to `newest_us`; None while the next period is open.

    `done_us`: up to where it was measured; 0 after a start, which begins with the last whole period. Of more than
    `MOST_PERIODS` that have passed since, as in a replay, the newest are taken: a round holds what it reads in memory.

    >>> due(newest_us=25, done_us=0, every_us=10), due(45, 20, 10), due(29, 20, 10), due(205, 20, 10)[0]
    (Period(from_us=10, until_us=20), Period(from_us=20, until_us=40), None, 130)
    """
    until_us = newest_us // every_us * every_us
    from_us = max(done_us or until_us - every_us, until_us - MOST_PERIODS * every_us)
    return Period(from_us, until_us) if until_us > from_us else None


def chosen(keys: Sequence[str], share: float, most: int) -> tuple[list[int], int]:
    """Return the rows of the sample, in order, and how many more the share alone would have taken.

    A share of all keys by their hash; of these, at most `most` rows, those of the smallest hashes.
    """
    bound = int(share * _HASHES)
    hashes = [int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) for key in keys]
    mine = sorted((number, row) for row, number in enumerate(hashes) if number < bound)
    return sorted(row for _, row in mine[:most]), max(0, len(mine) - most)


@dataclass(frozen=True)
class Served:
    """Features of n predictions as serving logged them, in the order of the vector.

    `values`: by feature, float64[n] (NaN for null) or object[n] ("" for null); `status`: uint8[n, features]; `there`:
    bool[n, features], false for a feature that the version which answered is not given.
    """

    values: Sequence[Any]
    status: Statuses
    there: Bools


def row_of(vector: PipelineVector, schema: Schema, text: str) -> dict[str, tuple[Any, int]] | None:
    """Return a prediction's (value, status) by feature; None where it has no features of that schema and vector.

    `text`: as `archiving.served_json` wrote it; its values are in the order of the version's schema.
    """
    content = json.loads(text or "{}")
    numbers, categories, statuses = (content.get(name, []) for name in ("numbers", "categories", "statuses"))
    named = [category for _, category in schema]
    known = dict(zip(vector.names, vector.category, strict=True))
    if (len(numbers), len(categories), len(statuses)) != (named.count(False), named.count(True), len(schema)):
        return None
    if any(known.get(name) is not category for name, category in schema):
        return None
    values = (iter(numbers), iter(categories))
    pairs = zip(schema, statuses, strict=True)
    return {name: (next(values[category]), status) for (name, category), status in pairs}


def served_of(vector: PipelineVector, rows: Sequence[Mapping[str, tuple[Any, int]]]) -> Served:
    """Return rows, as `row_of` gives them, by feature."""
    nothing: tuple[Any, int] = (None, 0)
    there = np.array([[name in row for name in vector.names] for row in rows], np.bool_)
    status = np.array([[row.get(name, nothing)[1] for name in vector.names] for row in rows], np.uint8)
    values: list[Any] = []
    for name, category in zip(vector.names, vector.category, strict=True):
        column = [row.get(name, nothing)[0] for row in rows]
        if category:
            values.append(np.array([value or "" for value in column], np.object_))
        else:
            values.append(np.array([np.nan if value is None else float(value) for value in column], np.float64))
    return Served(values, status, there)


@dataclass(frozen=True)
class Difference:
    """One feature, served and recomputed. `differs`: bool[n]; `largest`: of |served - recomputed| between numbers."""

    name: str
    # The pipeline's source and its view; "" for a request-time transform.
    source: str
    view: str
    compared: int
    differs: Bools
    # Served without a value that the log has, and with one that it has not.
    missing: Bools
    extra: Bools
    largest: float
    served: "Side"
    recomputed: "Side"


class Side(NamedTuple):
    """One feature's values and statuses, as served or as recomputed."""

    values: Sequence[Any]
    status: Statuses

    def shown(self, row: int) -> str:
        """Return a row as a person reads it."""
        value, status = self.values[row], int(self.status[row])
        kind = feature_pb2.Status.Name(status & STATUS_BITS).removeprefix("STATUS_")  # type: ignore[arg-type]
        head = " HEAD_EXCLUDED" if status & HEAD_EXCLUDED_BIT else ""
        head += " HOP_ACCURACY" if status & HOP_ACCURACY_BIT else ""
        return f"{'null' if value == '' or value != value else value} {kind}{head}"


def differences(vector: PipelineVector, served: Served, recomputed: VectorRows) -> Iterator[Difference]:
    """Yield every feature of the vector, in its order."""
    for place, (name, source, view) in enumerate(_places(vector)):
        there = served.there[:, place]
        mine, mine_status, twin_status = served.values[place], served.status[:, place], recomputed.status[:, place]
        if vector.category[place]:
            twin: Any = np.array([value or "" for value in recomputed.categories[name]], np.object_)
            same, without_mine, without_twin, largest = mine == twin, mine == "", twin == "", 0.0
        else:
            twin = recomputed.numbers[name]
            without_mine, without_twin = np.isnan(mine), np.isnan(twin)
            same = (mine.view(np.int64) == twin.view(np.int64)) | (without_mine & without_twin)
            apart = np.abs(mine[there & ~same] - twin[there & ~same])
            largest = float(np.max(apart[np.isfinite(apart)], initial=0.0))
        yield Difference(
            name,
            source,
            view,
            compared=int(there.sum()),
            differs=np.asarray(there & ~(same & (mine_status == twin_status)), np.bool_),
            missing=there & without_mine & ~without_twin,
            extra=there & without_twin & ~without_mine,
            largest=largest,
            served=Side(mine, mine_status),
            recomputed=Side(twin, twin_status),
        )


def _places(vector: PipelineVector) -> Iterator[tuple[str, str, str]]:
    """Yield (name, source, view) of every feature in the vector's order."""
    names = iter(vector.names)
    for source in vector.sources:
        if source.plan is None:
            yield next(names), "", ""
            continue
        for _ in source.plan.features:
            yield next(names), source.name, source.plan.name
