"""Feature values as a client gets them: a column per feature, a row per key, each value with status and age."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import EPOCH

from tidemill.clients.errors import ClientError

KeyPart: TypeAlias = str | int | bool | datetime | None
# One value where the view's entity is one field, else a value per field in the view's order.
Key: TypeAlias = KeyPart | Sequence[KeyPart]
Value: TypeAlias = float | int | str | bool | datetime | None

_MICROSECOND = timedelta(microseconds=1)
_INT64 = range(-(2**63), 2**63)
_LISTS = {
    definition.FIELD_TYPE_FLOAT64: "float64_values",
    definition.FIELD_TYPE_INT64: "int64_values",
    definition.FIELD_TYPE_TIMESTAMP: "int64_values",
    definition.FIELD_TYPE_STRING: "string_values",
    definition.FIELD_TYPE_BOOL: "bool_values",
}


class Status(StrEnum):
    """Why a value is there, or is not."""

    PRESENT = "PRESENT"
    # The entity is known, and there was nothing to aggregate.
    NULL = "NULL"
    # No event of this entity was ever seen.
    NOT_FOUND = "NOT_FOUND"
    # The entity's newest event is older than the view's max_age.
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"
    # A read so far in the past that a part of the window is no longer kept.
    BEYOND_KEPT = "BEYOND_KEPT"


_STATUSES: Mapping[int, Status] = {feature.Status.Value(f"STATUS_{status}"): status for status in Status}


@dataclass(frozen=True)
class FeatureColumn:
    """One feature, an element per row.

    `values`: None where there is none. `event_times_us`: time of the newest event behind each value in microseconds
    since the epoch, UTC; 0 where there is none. `hop_accuracy`: where a value of an exact view is only as accurate as a
    hop, since a bucket held more events than are kept.
    """

    name: str
    values: list[Value]
    statuses: list[Status]
    event_times_us: list[int]
    hop_accuracy: list[bool]
    as_of_us: int = field(repr=False)

    @property
    def event_times(self) -> list[datetime | None]:
        """Return when the newest event behind each value happened."""
        return [moment(instant_us) if instant_us else None for instant_us in self.event_times_us]

    @property
    def ages(self) -> list[timedelta | None]:
        """Return how long before `as_of` that was."""
        return [(self.as_of_us - one) * _MICROSECOND if one else None for one in self.event_times_us]


@dataclass(frozen=True)
class FeatureTable(Mapping[str, FeatureColumn]):
    """A view's features for some keys; a mapping from a feature's name to its column, in the view's order.

    `head_excluded`: the rows whose newest bucket was left out, since the read was for a moment before events that were
    folded already.
    """

    view: str
    view_hash: str
    as_of_us: int
    keys_asked: tuple[Key, ...]
    columns: dict[str, FeatureColumn]
    head_excluded: list[bool]

    def __getitem__(self, name: str) -> FeatureColumn:
        if name not in self.columns:
            raise KeyError(f"view {self.view!r} has no feature {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def as_of(self) -> datetime:
        """Return the moment that the values are true for."""
        return moment(self.as_of_us)

    def rows(self) -> Iterator[dict[str, Value]]:
        """Yield the values of each key, in the order asked."""
        names = list(self.columns)
        for values in zip(*(column.values for column in self.columns.values()), strict=True):
            yield dict(zip(names, values, strict=True))


def moment(instant_us: int) -> datetime:
    """Return an instant as Python has it."""
    return EPOCH + instant_us * _MICROSECOND


def instant_of(when: datetime, name: str) -> int:
    """Return microseconds since the epoch. Raises `ClientError` for a time that leaves its offset open."""
    if when.tzinfo is None:
        raise ClientError(f"{name} {when} has no UTC offset", reached=True, reason="naive_timestamp", field=name)
    return (when - EPOCH) // _MICROSECOND


def keys_of(keys: Iterable[Key]) -> list[feature.EntityKey]:
    """Return keys in their wire form. Raises `ClientError` for what it cannot carry."""
    return [feature.EntityKey(values=[_scalar(part) for part in _parts(key)]) for key in keys]


def _parts(key: Any) -> Sequence[Any]:
    return key if isinstance(key, Sequence) and not isinstance(key, str | bytes) else (key,)


def _scalar(part: Any) -> feature.Scalar:
    if part is None:
        return feature.Scalar()
    if isinstance(part, str):
        try:
            return feature.Scalar(string_value=part)
        except (UnicodeEncodeError, ValueError) as error:
            raise ClientError(f"{part!a} is no text", reached=True, reason="bad_utf8", field="keys") from error
    if isinstance(part, bool):
        return feature.Scalar(bool_value=part)
    if isinstance(part, int):
        if part not in _INT64:
            raise ClientError(f"{part} does not fit an int64", reached=True, reason="out_of_range", field="keys")
        return feature.Scalar(int64_value=part)
    if isinstance(part, float):
        # No entity is a float; the service says so, and names one that is not finite.
        return feature.Scalar(float64_value=part)
    if isinstance(part, datetime):
        return feature.Scalar(timestamp_us=instant_of(part, "keys"))
    raise ClientError(f"{type(part).__name__} is no type of key", reached=True, reason="wrong_type", field="keys")


def table_of(keys: Sequence[Key], response: feature.GetFeaturesResponse) -> FeatureTable:
    """Return the answer about one view."""
    (view,) = response.columns
    as_of_us, rows = response.as_of_us, view.rows
    columns = {one.feature: _column(one, rows, as_of_us) for one in view.features}
    excluded = [bool(one) for one in view.head_excluded or bytes(rows)]
    return FeatureTable(view.view, view.view_hash, as_of_us, tuple(keys), columns, excluded)


def _column(column: feature.FeatureColumn, rows: int, as_of_us: int) -> FeatureColumn:
    values: list[Any] = list(getattr(column, _LISTS[column.type]))
    if column.type == definition.FIELD_TYPE_TIMESTAMP:
        values = [moment(value) for value in values]
    if column.nulls:
        values = [None if null else value for value, null in zip(values, column.nulls, strict=True)]
    if len(values) != rows:
        raise ClientError(f"feature {column.feature!r} has {len(values)} values for {rows} keys", reached=True)
    statuses = [_STATUSES[status] for status in column.statuses]
    coarse = [bool(one) for one in column.hop_accuracy or bytes(rows)]
    return FeatureColumn(column.feature, values, statuses, list(column.event_times_us), coarse, as_of_us)
