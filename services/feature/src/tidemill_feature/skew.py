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
from tidemill_features.finalise import HEAD_EXCLUDED_BIT
from tidemill_features.vector import PipelineVector, VectorRows

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Statuses = NDArray[np.uint8]

_HASHES = 2**64


class Period(NamedTuple):
    """`as_of` of predictions, µs: from (inclusive) to (exclusive)."""

    from_us: int
    until_us: int


def due(newest_us: int, done_us: int, every_us: int) -> Period | None:
    """Return what is to be measured once predictions have come to `newest_us`; None while the next period is open.

    `done_us`: up to where it was measured; 0 after a start, which begins with the last whole period.

    >>> due(newest_us=25, done_us=0, every_us=10), due(45, 20, 10), due(29, 20, 10)
    (Period(from_us=10, until_us=20), Period(from_us=20, until_us=40), None)
    """
    until_us = newest_us // every_us * every_us
    from_us = done_us or until_us - every_us
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
    """Features of n predictions as serving logged them.

    `numbers`: float64[n, numbers], NaN for null; `categories`: n tuples, "" for null; `status`: uint8[n, features].
    """

    numbers: Floats
    categories: Sequence[Sequence[str]]
    status: Statuses


def served_of(vector: PipelineVector, texts: Sequence[str]) -> tuple[Served, list[int]]:
    """Return the features that the log keeps of some predictions, and the rows that have values for this vector.

    `texts`: as `archiving.served_json` wrote them.
    """
    categories = sum(vector.category)
    shape = len(vector.names) - categories, categories, len(vector.names)
    rows: list[int] = []
    parsed: list[Mapping[str, Any]] = []
    for row, text in enumerate(texts):
        content = json.loads(text)
        if (len(content["numbers"]), len(content["categories"]), len(content["statuses"])) == shape:
            rows.append(row)
            parsed.append(content)
    numbers = [[np.nan if number is None else float(number) for number in one["numbers"]] for one in parsed]
    status = np.array([one["statuses"] for one in parsed], np.uint8).reshape(len(rows), shape[2])
    served = Served(
        np.array(numbers, np.float64).reshape(len(rows), shape[0]), [one["categories"] for one in parsed], status
    )
    return served, rows


@dataclass(frozen=True)
class Difference:
    """One feature, served and recomputed. `differs`: bool[n]; `largest`: of |served - recomputed| between numbers."""

    name: str
    # The pipeline's source and its view; "" for a request-time transform.
    source: str
    view: str
    differs: Bools
    # Served without a value that the log has, and with one that it has not.
    missing: Bools
    extra: Bools
    largest: float
    served: Sequence[Any]
    recomputed: Sequence[Any]
    served_status: Statuses
    recomputed_status: Statuses

    def shown(self, row: int) -> tuple[str, str]:
        """Return a row's two sides as a person reads them."""
        served = _text(self.served[row], int(self.served_status[row]))
        return served, _text(self.recomputed[row], int(self.recomputed_status[row]))


def differences(vector: PipelineVector, served: Served, recomputed: VectorRows) -> Iterator[Difference]:
    """Yield every feature of the vector, in its order."""
    number = category = 0
    for place, (name, source, view) in enumerate(_places(vector)):
        mine_status, twin_status = served.status[:, place], recomputed.status[:, place]
        if vector.category[place]:
            mine: Any = np.array([row[category] for row in served.categories], np.object_)
            twin: Any = np.array([value or "" for value in recomputed.categories[name]], np.object_)
            category += 1
            same, without_mine, without_twin, largest = mine == twin, mine == "", twin == "", 0.0
        else:
            mine, twin = np.ascontiguousarray(served.numbers[:, number]), recomputed.numbers[name]
            number += 1
            without_mine, without_twin = np.isnan(mine), np.isnan(twin)
            same = (mine.view(np.int64) == twin.view(np.int64)) | (without_mine & without_twin)
            apart = np.abs(mine[~same] - twin[~same])
            largest = float(np.max(apart[np.isfinite(apart)], initial=0.0))
        differs = np.asarray(~(same & (mine_status == twin_status)), np.bool_)
        missing, extra = without_mine & ~without_twin, without_twin & ~without_mine
        yield Difference(name, source, view, differs, missing, extra, largest, mine, twin, mine_status, twin_status)


def _places(vector: PipelineVector) -> Iterator[tuple[str, str, str]]:
    """Yield (name, source, view) of every feature in the vector's order."""
    names = iter(vector.names)
    for source in vector.sources:
        if source.plan is None:
            yield next(names), "", ""
            continue
        for _ in source.plan.features:
            yield next(names), source.name, source.plan.name


def _text(value: Any, status: int) -> str:
    kind = feature_pb2.Status.Name(status & ~HEAD_EXCLUDED_BIT).removeprefix("STATUS_")  # type: ignore[arg-type]
    head = " HEAD_EXCLUDED" if status & HEAD_EXCLUDED_BIT else ""
    nothing = value == "" or value != value
    return f"{'null' if nothing else value} {kind}{head}"
