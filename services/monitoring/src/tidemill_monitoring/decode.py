"""From log records to predictions, labels, times and triggers; what is poison is decided here, before any effect."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from math import isfinite
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tidemill_contracts.canonical import from_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.cloudevents import WATERMARK_TYPE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import EARLIEST_US, LATEST_US, parse_us
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.reasons import Reason
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_contracts.topics import events_topic
from tidemill_features.expressions import TYPE_NAMES, Expression, compile_expression, schema_of
from tidemill_runtime.batches import Record
from tidemill_runtime.errors import Poison

from tidemill_monitoring.scores import MAX_ROLE, pack

PREDICTIONS = "serving.predictions.v1"
# UNIT SEPARATOR joins what makes an identity; it cannot stand in a header's source by accident.
_JOINER = "\x1f"
# Keys of tables: PostgreSQL's index takes 2,704 bytes of all parts of one together.
_MAX_KEY_BYTES = 512


class Prediction(NamedTuple):
    """A logged prediction as it is stored until its label comes."""

    pipeline: str
    prediction_id: str
    join_key: str
    as_of_us: int
    scores: bytes
    record: bytes


class Label(NamedTuple):
    """A label event's meaning for one pipeline; `ready_us`: how far its partition's clock stood when it was read."""

    pipeline: str
    join_key: str
    identity: str
    value: float
    label_time_us: int
    ready_us: int


class LabelPlan(NamedTuple):
    """How one pipeline reads its label from the events of a stream."""

    pipeline: str
    by: str
    expression: Expression
    fields: Sequence[definition.Field]


class StreamPlan(NamedTuple):
    """What monitoring does with the events of one stream."""

    stream: definition.Stream
    labels: Sequence[LabelPlan]


class Event(NamedTuple):
    """One record of a user stream: its event time, and its fields where a label is read from them."""

    time_us: int
    identity: str
    fields: Mapping[str, Any] | None


def plans_of(catalogue: Catalogue) -> dict[str, StreamPlan]:
    """Return, by logical topic, a plan for every stream that some pipeline reads.

    Raises `ValueError` for a label that cannot be read, `KeyError` for a stream or view that is not registered.
    """
    plans: dict[str, StreamPlan] = {}
    for pipeline in catalogue.pipelines.values():
        for name in catalogue.streams_of(pipeline):
            plans.setdefault(events_topic(name), StreamPlan(catalogue.streams[name], []))
        plan = plans[events_topic(pipeline.label.stream)]
        plans[events_topic(pipeline.label.stream)] = plan._replace(labels=[*plan.labels, _label_plan(pipeline, plan)])
    return plans


def _label_plan(pipeline: definition.Pipeline, plan: StreamPlan) -> LabelPlan:
    schema, by = schema_of(plan.stream.fields), pipeline.label.by
    expression = compile_expression(pipeline.label.expression, schema)
    if expression.type not in _LABEL_TYPES:
        raise ValueError(f"it is of type {TYPE_NAMES[expression.type]}, neither a condition nor a number")
    # Else every event would be refused for it, and for the other pipelines that take their label here.
    if by not in schema or schema[by].type != definition.FIELD_TYPE_STRING:
        raise ValueError(f"stream {plan.stream.name!r} has no string field {by!r} to join it by")
    return LabelPlan(pipeline.name, by, expression, [schema[name] for name in expression.columns])


def prediction(record: Record) -> serving.PredictionRecord:
    """Return one logged prediction. Raises `Poison`."""
    raw = record.value
    if not raw:
        raise Poison(Reason.EMPTY, "a prediction without a value", fix="serving writes PredictionRecord")
    try:
        found = serving.PredictionRecord.FromString(raw)
    except DecodeError as error:
        raise Poison(Reason.UNDECODABLE, f"no PredictionRecord: {error}") from error
    for field in ("prediction_id", "pipeline", "join_key"):
        if not getattr(found, field):
            raise Poison(Reason.MISSING_FIELD, f"a prediction without {field}", field=field)
        _check_key(getattr(found, field), field)
    if not EARLIEST_US <= found.as_of_us < LATEST_US:
        raise Poison(Reason.OUT_OF_RANGE, f"as_of_us is {found.as_of_us}", field="as_of_us")
    _check_scores(found)
    return found


def _check_scores(found: serving.PredictionRecord) -> None:
    """Refuse what is no probability, and roles that no release has, before they are summed up. Raises `Poison`."""
    answers: Iterable[serving.Score | serving.PredictionRecord] = found.scores or [found]
    for one in answers:
        if not 0.0 <= one.probability <= 1.0:
            reason = Reason.OUT_OF_RANGE if isfinite(one.probability) else Reason.NON_FINITE
            what = f"version {one.model_version} answered {one.probability}, which is no probability"
            raise Poison(reason, what, field="probability")
    for score in found.scores:
        if not 0 <= score.role <= MAX_ROLE:
            what = f"version {score.model_version} answered in role {score.role}"
            raise Poison(Reason.OUT_OF_RANGE, what, field="role")


def stored(found: serving.PredictionRecord, raw: bytes) -> Prediction:
    """Return a logged prediction as it is stored; `raw`: its record."""
    return Prediction(found.pipeline, found.prediction_id, found.join_key, found.as_of_us, pack(found), raw)


def trigger(record: Record) -> monitoring.PolicyTrigger:
    """Return one trigger of the policy. Raises `Poison`."""
    try:
        return from_json(record.value or b"", monitoring.PolicyTrigger())
    except ValueError as error:
        raise Poison(Reason.UNDECODABLE, f"no PolicyTrigger: {error}") from error


def event(record: Record, plan: StreamPlan, now_us: int) -> Event:
    """Return one event's time and, for a label stream, its fields; a watermark has no fields. Raises `Poison`."""
    kind = source = name = time = b""
    for header, value in record.headers:
        if header == "ce_time":
            time = value
        elif header == "ce_type":
            kind = value
        elif header == "ce_id":
            name = value
        elif header == "ce_source":
            source = value
    watermark = kind == WATERMARK_TYPE.encode()
    fields = None if watermark or (time and not plan.labels) else _fields(record)
    time_us = _event_time(time, fields, plan.stream)
    limit_us = plan.stream.max_future_ms * 1000
    if limit_us and time_us > now_us + limit_us:
        raise Poison(
            Reason.TOO_FAR_IN_FUTURE,
            f"event time lies {(time_us - now_us) / 1e6:.0f} s ahead of the clock, beyond {limit_us / 1e6:.0f} s",
            field=plan.stream.time_field,
        )
    return Event(time_us, _identity(record, source, name), fields)


def _identity(record: Record, source: bytes, name: bytes) -> str:
    """Return what makes two records the same event, as a text that a table takes as a key."""
    if not (source and name):
        return _JOINER.join((record.topic, str(record.partition), str(record.offset)))
    raw = source + _JOINER.encode() + name
    if len(raw) <= _MAX_KEY_BYTES and b"\0" not in raw:
        with suppress(UnicodeDecodeError):
            return raw.decode()
    # Only equality counts: a producer's odd identity is no reason to refuse its event.
    return f"sha256:{sha256(raw).hexdigest()}"


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Poison(Reason.BAD_UTF8, "a header is not UTF-8") from error


def _event_time(header: bytes, fields: Mapping[str, Any] | None, stream: definition.Stream) -> int:
    text = _text(header) if header else (fields or {}).get(stream.time_field)
    if text is None:
        raise Poison(Reason.MISSING_FIELD, "no event time in header or field", field=stream.time_field)
    if not isinstance(text, str):
        raise Poison(Reason.WRONG_TYPE, f"the event time is {type(text).__name__}", field=stream.time_field)
    try:
        time_us = parse_us(text)
    except ValueError as error:
        raise _no_instant(text, error, stream.time_field) from error
    if not EARLIEST_US <= time_us < LATEST_US:
        raise Poison(Reason.OUT_OF_RANGE, f"event time {text[:40]!r} is out of range", field=stream.time_field)
    return time_us


def _no_instant(text: str, error: ValueError, field: str) -> Poison:
    try:
        naive = datetime.fromisoformat(text).tzinfo is None
    except ValueError:
        naive = False
    return Poison(Reason.NAIVE_TIMESTAMP if naive else Reason.WRONG_TYPE, f"{text[:40]!r}: {error}", field=field)


def _fields(record: Record) -> Mapping[str, Any]:
    if not record.value:
        raise Poison(Reason.EMPTY, "an event without a value")
    try:
        # Decoded first: of bytes, the decoder would guess an encoding, and take UTF-16 for right.
        found = json.loads(record.value.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Poison(Reason.BAD_UTF8, "the event is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise Poison(Reason.UNDECODABLE, f"the event is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Poison(Reason.UNDECODABLE, "the event is no JSON object")
    return found


def _refuse_constant(name: str) -> Any:
    raise Poison(Reason.NON_FINITE, f"{name} is no JSON number")


def _check_key(text: str, field: str) -> None:
    """Refuse what no table of PostgreSQL takes as a key. Raises `Poison`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Poison(Reason.BAD_UTF8, "a \\u escape is half of a surrogate pair", field=field) from error
    if "\0" in text:
        raise Poison(Reason.BAD_UTF8, "a key holds a NUL character", field=field)
    if size > _MAX_KEY_BYTES:
        raise Poison(Reason.OVERSIZED, f"a key of {size} bytes; at most {_MAX_KEY_BYTES} are joined", field=field)


def labels(found: Event, plan: StreamPlan, ready_us: int) -> list[Label]:
    """Return what an event says to each pipeline that takes its label here; a null label says nothing.

    Raises `Poison`.
    """
    if found.fields is None:
        return []
    return [label for part in plan.labels if (label := _label(found, part, ready_us)) is not None]


def _label(found: Event, plan: LabelPlan, ready_us: int) -> Label | None:
    assert found.fields is not None
    key = found.fields.get(plan.by)
    if key is None or key == "":
        reason = Reason.NULL_KEY if plan.by in found.fields else Reason.MISSING_FIELD
        raise Poison(reason, "a label event without its join key", field=plan.by)
    if not isinstance(key, str):
        raise Poison(Reason.WRONG_TYPE, f"{plan.by} is {type(key).__name__}, not a string", field=plan.by)
    _check_key(key, plan.by)
    row = {field.name: _typed(found.fields.get(field.name), field) for field in plan.fields}
    value = plan.expression.evaluate_row(row)
    if value is None:
        return None
    return Label(plan.pipeline, key, found.identity, float(value), found.time_us, ready_us)


def _typed(value: Any, field: definition.Field) -> Any:
    """Return a JSON value as its field's type. Raises `Poison`."""
    if value is None:
        if field.nullable:
            return None
        raise Poison(Reason.MISSING_FIELD, f"{field.name} is missing", field=field.name)
    if field.type == definition.FIELD_TYPE_TIMESTAMP:
        try:
            return parse_us(value)
        except TypeError as error:
            raise Poison(Reason.WRONG_TYPE, f"{field.name}: {error}", field=field.name) from error
        except ValueError as error:
            raise _no_instant(value, error, field.name) from error
    if not isinstance(value, _PYTHON[field.type]) or (isinstance(value, bool) != (field.type == _BOOL)):
        raise Poison(Reason.WRONG_TYPE, f"{field.name} is {type(value).__name__}", field=field.name)
    _check_bounds(value, field)
    return value


def _check_bounds(value: Any, field: definition.Field) -> None:
    if field.type == definition.FIELD_TYPE_FLOAT64 and not abs(value) <= sys.float_info.max:
        raise Poison(Reason.NON_FINITE, f"{field.name} is not finite", field=field.name)
    if field.type == definition.FIELD_TYPE_INT64 and not -(2**63) <= value < 2**63:
        raise Poison(Reason.OUT_OF_RANGE, f"{field.name} does not fit into 64 bits", field=field.name)


_BOOL = definition.FIELD_TYPE_BOOL
_LABEL_TYPES = (_BOOL, definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64)
_PYTHON: dict[int, tuple[type, ...]] = {
    definition.FIELD_TYPE_BOOL: (bool,),
    definition.FIELD_TYPE_INT64: (int,),
    definition.FIELD_TYPE_FLOAT64: (int, float),
    definition.FIELD_TYPE_STRING: (str,),
}
