"""What a stream's events look like, hop by hop: rate, nulls, ranges, distinct values, age, repeats, lateness; pure.

Fields are looked at column by column once some events are together: event by event it would cost several times as much.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import repeat
from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import records_pb2 as records
from tidemill_contracts.instants import to_timestamp

from tidemill_ingestion.distinct import Distinct

_BATCH = 512
_SECOND_US = 1_000_000
_NUMBERS = (definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64)
DEFAULT_MAX_FIELDS = 100


class _Field:
    """One field in the present hop."""

    __slots__ = ("distinct", "high", "low", "name", "nulls", "number")

    def __init__(self, name: str, *, number: bool) -> None:
        self.name = name
        self.number = number
        self.nulls = 0
        self.low: float | None = None
        self.high: float | None = None
        self.distinct = Distinct()

    def add(self, events: list[dict[str, Any]]) -> None:
        values: list[Any] = list(map(dict.get, events, repeat(self.name)))
        nulls = values.count(None)
        if nulls:
            self.nulls += nulls
            values = [value for value in values if value is not None]
        if not values:
            return
        self.distinct.add(values)
        if self.number:
            low, high = min(values), max(values)
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)

    def message(self, events: int) -> records.FieldQuality:
        found = records.FieldQuality(name=self.name, null_share=self.nulls / events, distinct=self.distinct.estimate())
        if self.low is not None and self.high is not None:
            found.min, found.max = float(self.low), float(self.high)
        return found


class Profile:
    """One stream in the present hop; a sketch for each of `max_fields` fields and some hundred events are kept."""

    def __init__(self, stream: definition.Stream, max_fields: int = DEFAULT_MAX_FIELDS) -> None:
        self._max_fields = max_fields
        self._stream = stream
        self._lateness_us = stream.lateness_ms * 1000
        self._newest_us: dict[int, int] = {}
        self._begin_us: int | None = None
        self.duplicates = 0
        self._accepted = self._late = self._ages_us = self._observed = 0
        self._oldest_us: int | None = None
        self._refused: Counter[str] = Counter()
        self._waiting: list[dict[str, Any]] = []
        self._fields: list[_Field] = []
        self._begin_fields()

    def follow(self, stream: definition.Stream) -> None:
        """Take over a redefinition of the stream: what was counted stays, fields begin anew where they changed."""
        changed = list(self._stream.fields) != list(stream.fields)
        self._stream = stream
        self._lateness_us = stream.lateness_ms * 1000
        if changed:
            self._begin_fields()

    def observe(self, fields: dict[str, Any]) -> None:
        """Take in the fields of an event that was admitted."""
        self._waiting.append(fields)
        if len(self._waiting) >= _BATCH:
            self._fold()

    def refuse(self, reasons: Iterable[str]) -> None:
        """Count refused events by reason."""
        self._refused.update(reasons)

    def accept(self, partition: int, time_us: int, now_us: int) -> None:
        """Count an event that was written, in the order of its partition."""
        self._accepted += 1
        age_us = now_us - time_us
        self._ages_us += age_us
        if self._oldest_us is None or age_us > self._oldest_us:
            self._oldest_us = age_us
        newest_us = self._newest_us.get(partition)
        if newest_us is None or time_us > newest_us:
            self._newest_us[partition] = time_us
        elif time_us < newest_us - self._lateness_us:
            self._late += 1

    @property
    def newest_us(self) -> int | None:
        """The newest event time written so far."""
        return max(self._newest_us.values(), default=None)

    @property
    def offered(self) -> int:
        """Events of the present hop: accepted, repeated and refused."""
        return self._accepted + self.duplicates + self._refused.total()

    def cut(self, now_us: int) -> records.StreamProfile:
        """End the hop at `now_us`, return what it held, and begin the next."""
        self._fold()
        begin_us = now_us if self._begin_us is None else self._begin_us
        offered, accepted = self.offered, self._accepted
        profile = records.StreamProfile(
            window_start=to_timestamp(begin_us),
            window_end=to_timestamp(now_us),
            accepted=accepted,
            duplicates=self.duplicates,
            refused=dict(self._refused),
            late=self._late,
            rate=accepted * _SECOND_US / (now_us - begin_us) if now_us > begin_us else 0.0,
        )
        if offered:
            profile.duplicate_share = self.duplicates / offered
            profile.refused_share = self._refused.total() / offered
        if accepted and self._oldest_us is not None:
            profile.late_share = self._late / accepted
            profile.mean_age_seconds = self._ages_us / accepted / _SECOND_US
            profile.max_age_seconds = self._oldest_us / _SECOND_US
        if (newest_us := self.newest_us) is not None:
            profile.event_time.CopyFrom(to_timestamp(newest_us))
            profile.freshness_seconds = (now_us - newest_us) / _SECOND_US
        if self._observed:
            profile.fields.extend(field.message(self._observed) for field in self._fields)
        self._begin_us = now_us
        self._clear()
        return profile

    def begin(self, now_us: int) -> None:
        """Say when the first hop began."""
        if self._begin_us is None:
            self._begin_us = now_us

    def _fold(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._observed += len(waiting)
            for field in self._fields:
                field.add(waiting)

    def _clear(self) -> None:
        self._accepted = self._late = self._ages_us = self.duplicates = 0
        self._oldest_us = None
        self._refused = Counter()
        self._begin_fields()

    def _begin_fields(self) -> None:
        self._observed = 0
        self._waiting = []
        declared = list(self._stream.fields)[: self._max_fields]
        self._fields = [_Field(field.name, number=field.type in _NUMBERS) for field in declared]
