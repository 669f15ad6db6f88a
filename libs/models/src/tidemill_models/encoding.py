"""From named feature columns to the float32 matrix that a model sees; the same code trains and serves.

A number that is missing or not finite becomes NaN. A category becomes its place in the vocabulary of its column,
behind two bins that every column has: null (0) and unseen (1).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]
Categories = Sequence[str | None]

NULL = 0
UNSEEN = 1
FIRST_KNOWN = 2

# A category rarer than this is left to the unseen bin, so that the bin is trained before it is needed.
MIN_ROWS = 20
MAX_CATEGORIES = 1000
# Prior rows at the overall label rate: keeps a rare category from the ends of the order by luck.
_PRIOR_ROWS = 20.0


@dataclass(frozen=True, slots=True)
class Column:
    """One feature: its name, and whether it is a category (string) or a number."""

    name: str
    category: bool


@dataclass(frozen=True)
class Encoding:
    """The order of the columns and the vocabulary of each category column."""

    columns: tuple[Column, ...]
    # Known categories in code order: the first has code 2.
    vocabularies: Mapping[str, tuple[str, ...]]
    _codes: dict[str, dict[str | None, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        categories = {column.name for column in self.columns if column.category}
        if len(set(names)) != len(names) or categories != set(self.vocabularies):
            raise ValueError("columns must be distinct, and each category column needs one vocabulary")
        object.__setattr__(self, "_codes", {name: _codes(words) for name, words in self.vocabularies.items()})

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def number_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if not column.category)

    @property
    def category_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns if column.category)

    def encode(self, numbers: Mapping[str, Floats], categories: Mapping[str, Categories]) -> Matrix:
        """Return float32[n, width] of columns given by name; names that this encoding does not know are not read.

        `numbers[name]`: float64[n]; `categories[name]`: n strings, None or "" for null.
        Raises `KeyError` where a column of the encoding is not given.
        """
        first = self.columns[0]
        rows = len(categories[first.name] if first.category else numbers[first.name])
        matrix = np.empty((rows, self.width), dtype=np.float32)
        with np.errstate(over="ignore"):
            for place, column in enumerate(self.columns):
                if column.category:
                    codes = self._codes[column.name]
                    matrix[:, place] = [codes.get(value, UNSEEN) for value in categories[column.name]]
                else:
                    matrix[:, place] = numbers[column.name]
        matrix[~np.isfinite(matrix)] = np.nan
        return matrix

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form."""
        return {
            "columns": [{"name": column.name, "category": column.category} for column in self.columns],
            "vocabularies": {name: list(words) for name, words in self.vocabularies.items()},
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Encoding":
        """Read the stored form. Raises `KeyError`, `TypeError` or `ValueError` where it is not one."""
        return cls(
            tuple(Column(str(column["name"]), bool(column["category"])) for column in raw["columns"]),
            {str(name): tuple(map(str, words)) for name, words in raw["vocabularies"].items()},
        )


def learn_encoding(columns: Iterable[Column], categories: Mapping[str, Categories], labels: Floats) -> Encoding:
    """Return the encoding of training rows; vocabularies are ordered by the categories' label rate.

    In that order one threshold on the code is the best split of the categories in two groups
    (Breiman et al., Classification and Regression Trees, 1984, section 4.2.2).
    """
    ordered = tuple(columns)
    named = (column.name for column in ordered if column.category)
    return Encoding(ordered, {name: _vocabulary(categories[name], labels) for name in named})


def _codes(words: Sequence[str]) -> dict[str | None, int]:
    codes: dict[str | None, int] = {word: code for code, word in enumerate(words, FIRST_KNOWN)}
    return {**codes, None: NULL, "": NULL}


def _vocabulary(values: Categories, labels: Floats) -> tuple[str, ...]:
    counts = Counter(value for value in values if value)
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES]
    kept = [word for word, rows in frequent if rows >= MIN_ROWS]
    places = {word: place for place, word in enumerate(kept)}
    codes = np.array([places.get(value, -1) if value else -1 for value in values], dtype=np.int64)
    known = codes >= 0
    positives = np.bincount(codes[known], weights=labels[known], minlength=len(kept))
    prior = float(labels.mean()) if len(labels) else 0.0
    rates = [(positives[place] + _PRIOR_ROWS * prior) / (counts[word] + _PRIOR_ROWS) for place, word in enumerate(kept)]
    return tuple(word for _, word in sorted(zip(rates, kept, strict=True)))
