"""The fast verdict on an event: what it accepts is right; whatever it does not accept, `explanation` decides.

Two ways to one verdict: the fast one only knows events that are right in every respect, with all their fields, and asks
the slow one about everything else, which is as strict and knows the reason. A test holds both together.
"""

from datetime import datetime

import orjson
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_ingestion.explanation import INT64_MAX, Explainer, key_of
from tidemill_ingestion.timestamps import InstantError, parse, to_us
from tidemill_ingestion.verdicts import Refusal, Valid

# The classes that orjson gives for a JSON value of each type; bool is no int here.
_CLASSES: dict[int, frozenset[type]] = {
    definition.FIELD_TYPE_BOOL: frozenset({bool}),
    definition.FIELD_TYPE_INT64: frozenset({int}),
    definition.FIELD_TYPE_FLOAT64: frozenset({int, float}),
    definition.FIELD_TYPE_STRING: frozenset({str}),
    definition.FIELD_TYPE_TIMESTAMP: frozenset({str}),
}
_NULL = frozenset({type(None)})


class Validator:
    """Decides whether events fit one stream."""

    def __init__(self, stream: definition.Stream) -> None:
        self.explainer = Explainer(stream)
        self._max_bytes = self.explainer.max_bytes
        self._max_future_us = self.explainer.max_future_us
        self._classes = tuple(
            (field.name, _CLASSES[field.type] | (_NULL if field.nullable else frozenset())) for field in stream.fields
        )
        self._integers = tuple(f.name for f in stream.fields if f.type == definition.FIELD_TYPE_INT64)
        self._instants = tuple(
            field.name
            for field in stream.fields
            if field.type == definition.FIELD_TYPE_TIMESTAMP and field.name != stream.time_field
        )
        self._time_field = stream.time_field
        self._key_field = stream.key_field

    def check(self, data: bytes, now_us: int) -> Valid | Refusal:
        """Return the verdict on one event's data; `now_us` is the wall clock."""
        if len(data) <= self._max_bytes:
            accepted = self._accept(data, now_us)
            if accepted is not None:
                return accepted
        return self.explainer.check(data, now_us)

    def _accept(self, data: bytes, now_us: int) -> Valid | None:
        try:
            fields = orjson.loads(data)
            for name, classes in self._classes:
                if fields[name].__class__ not in classes:
                    return None
            # Every declared field is there, so that more of them means an unknown one.
            if len(fields) != len(self._classes):
                return None
            for name in self._integers:
                value = fields[name]
                # orjson gives integers up to unsigned 64 bits, and floats below signed ones.
                if value is not None and value > INT64_MAX:
                    return None
            for name in self._instants:
                text = fields[name]
                if text is not None:
                    parse(text)
            if fields[self._key_field] == "":
                return None
            text = fields[self._time_field]
            instant: datetime = parse(text)
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, InstantError):
            return None
        time_us = to_us(instant)
        if time_us > now_us + self._max_future_us:
            return None
        return Valid(key_of(fields[self._key_field]), time_us, text, fields)
