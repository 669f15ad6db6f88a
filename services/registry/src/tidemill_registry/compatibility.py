"""Which changes of a definition break what is there already, and whom; pure.

The rule for a stream is BACKWARD, kept for the whole log: every event that was right under the registered definition
is right under the new one, means the same, and a producer that has not heard of the change goes on. So fields are added
as nullable, int64 may become float64 (JSON's integers are numbers of either), null may become allowed. Views and
pipelines that are not applied along must find what they read as it was. An operator may allow a break; a final one is
none that could be lived with.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill_contracts.canonical import mentioned_in, to_dict, view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition

_NEW_STREAM = "declare a new stream under another name"
_TYPES = {
    definition.FIELD_TYPE_BOOL: "bool",
    definition.FIELD_TYPE_INT64: "int64",
    definition.FIELD_TYPE_FLOAT64: "float64",
    definition.FIELD_TYPE_STRING: "string",
    definition.FIELD_TYPE_TIMESTAMP: "timestamp",
}
# What a stream that was retired may not have become: its producers are gone, but its log is not. Fields that come back
# are looked at among all that it ever had, and how many partitions the topic has Kafka says.
_OF_THE_LOG = frozenset({"key_changed", "time_changed", "field_required", "null_refused"})
_WIDENED = (definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64)
PRODUCERS, LOG, CALLERS = "its producers", "events in the log", "callers of predict"


@dataclass(frozen=True, slots=True)
class Break:
    """One change that must not happen: what, where, whom it breaks, what to do instead."""

    rule: str
    # "streams.rides.fields.tip", "views.busy", …
    subject: str
    message: str
    breaks: tuple[str, ...]
    fix: str
    # Kafka or the offline log cannot do it, or what answers now would answer no more: it is never allowed.
    final: bool = False

    def sentence(self) -> str:
        """Return it as one line."""
        return f"{self.message}; breaks {', '.join(self.breaks)}; {self.fix}"


@dataclass(frozen=True)
class State:
    """Streams, views and pipelines by name."""

    streams: Mapping[str, definition.Stream] = field(default_factory=dict)
    views: Mapping[str, definition.View] = field(default_factory=dict)
    pipelines: Mapping[str, definition.Pipeline] = field(default_factory=dict)
    # By stream, retired ones too: fields that it had once and has no more.
    removed: Mapping[str, Mapping[str, definition.Field]] = field(default_factory=dict)
    # Retired streams as they were.
    ended: Mapping[str, definition.Stream] = field(default_factory=dict)

    def with_applied(self, applied: definition.Definition) -> "State":
        """Return the state after a definition was applied."""
        return State(
            {**self.streams, **{one.name: one for one in applied.streams}},
            {**self.views, **{one.name: one for one in applied.views}},
            {**self.pipelines, **{one.name: one for one in applied.pipelines}},
            self.removed,
            self.ended,
        )

    def without(self, *, views: Iterable[str] = (), pipelines: Iterable[str] = ()) -> "State":
        """Return the state after views and pipelines have ended."""
        ended, over = set(views), set(pipelines)
        return State(
            self.streams,
            {name: one for name, one in self.views.items() if name not in ended},
            {name: one for name, one in self.pipelines.items() if name not in over},
            self.removed,
            self.ended,
        )


def find_breaks(before: State, applied: definition.Definition) -> list[Break]:
    """Return everything that applying a definition would break, streams first."""
    after = before.with_applied(applied)
    found = [
        one
        for stream in applied.streams
        if stream.name in before.streams
        for one in _stream_breaks(before.streams[stream.name], stream, after, applied)
    ]
    found += [one for stream in applied.streams for one in _returned(before.removed.get(stream.name, {}), stream)]
    found += [
        one
        for stream in applied.streams
        if stream.name in before.ended
        for one in _stream_breaks(before.ended[stream.name], stream, after, applied)
        if one.rule in _OF_THE_LOG
    ]
    found += _redefined(before, after, applied)
    for pipeline in applied.pipelines:
        if pipeline.name in before.pipelines:
            found += _pipeline_breaks(before.pipelines[pipeline.name], pipeline)
    return found


def _stream_breaks(
    before: definition.Stream, after: definition.Stream, state: State, applied: definition.Definition
) -> Iterator[Break]:
    subject, name = f"streams.{after.name}", f"stream {after.name!r}"
    everybody = tuple(_users(state, after.name))
    for role, was, would in (
        ("key", before.key_field, after.key_field),
        ("time", before.time_field, after.time_field),
    ):
        if was != would:
            message = f"{name}: its {role} would be {would!r}, not {was!r}"
            yield Break(f"{role}_changed", f"{subject}.{role}_field", message, (LOG, *everybody), _NEW_STREAM)
    if before.partitions > after.partitions:
        message = f"{name} has {before.partitions} partitions: they can become more, not {after.partitions}"
        fix = f"leave them, or {_NEW_STREAM}"
        yield Break("partitions_changed", f"{subject}.partitions", message, (LOG, *everybody), fix, final=True)
    old_fields = {one.name: one for one in before.fields}
    new_fields = {one.name: one for one in after.fields}
    for field_name in [*old_fields, *(one for one in new_fields if one not in old_fields)]:
        place = f"{subject}.fields.{field_name}"
        readers = _readers(state, after.name, field_name)
        old, new = old_fields.get(field_name), new_fields.get(field_name)
        yield from _field_breaks(place, f"{name}: field {field_name!r}", old, new, tuple(readers))
        if new is None:
            yield from _kept_by(after.name, field_name, place, state)
        elif old is not None and new.nullable and not old.nullable:
            yield from _joined_by(after.name, field_name, place, state)
        if old is not None and new is not None and (old.type, new.type) == _WIDENED:
            yield from _widened(after, field_name, place, state, applied)


def _field_breaks(
    subject: str, name: str, old: definition.Field | None, new: definition.Field | None, readers: tuple[str, ...]
) -> Iterator[Break]:
    if new is None:
        fix = f"keep it (declared `| None`, so that producers may leave it out), or {_NEW_STREAM}"
        yield Break("field_removed", subject, f"{name} would be removed", (PRODUCERS, *readers), fix)
    elif old is None:
        if not new.nullable:
            message = f"{name} would be new and required"
            yield Break("field_required", subject, message, (LOG, PRODUCERS), "declare it `| None`")
    else:
        if old.type != new.type and (old.type, new.type) != _WIDENED:
            message = f"{name} would be {_TYPES[new.type]}, not {_TYPES[old.type]}"
            fix = f"add a field of another name beside it, or {_NEW_STREAM}"
            yield Break("type_changed", subject, message, (LOG, PRODUCERS, *readers), fix, final=True)
        if old.nullable and not new.nullable:
            message = f"{name} would not take null any more"
            yield Break("null_refused", subject, message, (LOG, PRODUCERS), "leave it `| None`")


def _kept_by(stream: str, field_name: str, subject: str, state: State) -> Iterator[Break]:
    """Yield the views that could not be kept at all without a field: no event would say whose it is."""
    views = tuple(
        f"view {name!r}"
        for name, view in sorted(state.views.items())
        if view.stream == stream and field_name in view.entity
    )
    if views:
        message = f"stream {stream!r}: field {field_name!r} would be removed, by which {', '.join(views)} is kept"
        fix = "retire or redefine what is kept by it first, or along"
        yield Break("field_removed", subject, message, views, fix, final=True)


def _joined_by(stream: str, field_name: str, subject: str, state: State) -> Iterator[Break]:
    """Yield the labels that are joined by a field which may be null from now on."""
    labels = tuple(
        f"label of pipeline {name!r}"
        for name, pipeline in sorted(state.pipelines.items())
        if pipeline.label.by == field_name and stream in (pipeline.request, pipeline.label.stream)
    )
    if labels:
        message = f"stream {stream!r}: field {field_name!r} would take null, and labels are joined by it"
        yield Break("null_in_label_key", subject, message, labels, "leave it without `| None`")


def _returned(removed: Mapping[str, definition.Field], after: definition.Stream) -> Iterator[Break]:
    """Yield fields that come back as another type: the log still holds them as what they were."""
    for one in after.fields:
        was = removed.get(one.name)
        if was is not None and one.type != was.type and (was.type, one.type) != _WIDENED:
            message = f"stream {after.name!r}: field {one.name!r} was {_TYPES[was.type]} once, not {_TYPES[one.type]}"
            fix = f"give it another name, or {_NEW_STREAM}"
            # The offline log can begin a column anew: an operator may say that the old values do not matter.
            yield Break("type_changed", f"streams.{after.name}.fields.{one.name}", message, (LOG,), fix)


def _widened(
    stream: definition.Stream, field_name: str, subject: str, state: State, applied: definition.Definition
) -> Iterator[Break]:
    """Yield whom int64 → float64 breaks: keys have other bytes then, and results another type."""
    message = f"stream {stream.name!r}: field {field_name!r} would be float64, not int64"
    if field_name == stream.key_field:
        message_of_key = f"{message}, and it is the key"
        yield Break("type_changed", subject, message_of_key, (LOG, PRODUCERS), _NEW_STREAM, final=True)
    along = {f"view {one.name!r}" for one in applied.views} | {f"pipeline {one.name!r}" for one in applied.pipelines}
    along |= {f"label of pipeline {one.name!r}" for one in applied.pipelines}
    left = tuple(one for one in _readers(state, stream.name, field_name) if one not in along)
    if left:
        yield Break("widened_in_use", subject, message, left, "apply them along, compiled anew")


def _redefined(before: State, after: State, applied: definition.Definition) -> Iterator[Break]:
    """Yield views that would be others than those on which pipelines that are not applied along were trained."""
    along = {pipeline.name for pipeline in applied.pipelines}
    users: dict[str, list[str]] = {}
    for name, pipeline in sorted(after.pipelines.items()):
        if name not in along:
            for view in views_of(pipeline):
                users.setdefault(view, []).append(name)
    for view, names in sorted(users.items()):
        if _hash(before, view) == _hash(after, view):
            continue
        stream = after.views[view].stream
        changed = view if before.views[view] != after.views[view] else f"{view!r} (by its stream {stream!r})"
        shown = repr(changed) if changed == view else changed
        yield Break(
            "redefined_in_use",
            f"views.{view}",
            f"view {shown} is used by {', '.join(map(repr, names))}, whose models were trained on it as it is",
            tuple(f"pipeline {name!r}" for name in names),
            "give the new one a name of its own, or apply those pipelines with it",
        )


def _pipeline_breaks(before: definition.Pipeline, after: definition.Pipeline) -> Iterator[Break]:
    subject, name = f"pipelines.{after.name}", f"pipeline {after.name!r}"
    fix = "declare a new pipeline under another name"
    if before.request != after.request:
        message = f"{name}: its request would be {after.request!r}, not {before.request!r}"
        yield Break("request_changed", f"{subject}.request", message, (CALLERS, f"models of {name}"), fix)
    if before.label.by != after.label.by:
        message = f"{name}: its label would be joined by {after.label.by!r}, not {before.label.by!r}"
        waiting = "predictions that wait for their label"
        yield Break("label_key_changed", f"{subject}.label.by", message, (waiting, f"label of {name}"), fix)


def pipelines_in_use(names: Sequence[str], users: Mapping[str, Sequence[str]]) -> list[Break]:
    """Return the pipelines that are to end although versions of theirs are in use or runs are under way.

    `users`: those by pipeline, as people call them. That may be allowed: else one that answers could never end.
    """
    fix = "let its callers do without it first, then allow it"
    return [
        Break("retired_in_use", f"pipelines.{name}", f"pipeline {name!r} would be retired", (CALLERS, *using), fix)
        for name in names
        if (using := users.get(name))
    ]


def streams_in_use(names: Sequence[str], after: State) -> list[Break]:
    """Return the streams that are to end although a view or a pipeline reads them."""
    fix = "retire or redefine what reads it first, or along"
    return [
        Break("retired_in_use", f"streams.{name}", f"stream {name!r} would be retired", users, fix, final=True)
        for name in names
        if (users := tuple(_users(after, name)))
    ]


def views_in_use(names: Sequence[str], after: State, readers: Mapping[str, Sequence[str]]) -> list[Break]:
    """Return the views that are to end although a pipeline or a model version reads them.

    `readers`: by view, the versions in use that read it, as people call them.
    """
    found = []
    for name in names:
        using = [pipeline for pipeline, one in sorted(after.pipelines.items()) if name in views_of(one)]
        breaks = (*(f"pipeline {pipeline!r}" for pipeline in using), *readers.get(name, ()))
        fix = (
            f"apply {', '.join(map(repr, using))} without it first"
            if using
            else "wait until a version without it is champion, or promote one"
        )
        if breaks:
            message = f"view {name!r} would be retired"
            found.append(Break("retired_in_use", f"views.{name}", message, breaks, fix, final=True))
    return found


def views_of(pipeline: definition.Pipeline) -> list[str]:
    """Return the names of the views that a pipeline uses, sorted."""
    return sorted({source.view.view for source in pipeline.features if source.HasField("view")})


def _hash(state: State, name: str) -> str:
    view = state.views[name]
    return view_hash(view, state.streams[view.stream])


def _users(state: State, stream: str) -> Iterator[str]:
    """Yield every view, pipeline and label that reads a stream."""
    yield from (f"view {name!r}" for name, view in sorted(state.views.items()) if view.stream == stream)
    for name, pipeline in sorted(state.pipelines.items()):
        if pipeline.request == stream:
            yield f"pipeline {name!r}"
        if pipeline.label.stream == stream:
            yield f"label of pipeline {name!r}"


def _readers(state: State, stream: str, field_name: str) -> Iterator[str]:
    """Yield every view, pipeline and label that reads a field; a name in a text counts, whatever it means there."""
    for name, view in sorted(state.views.items()):
        if view.stream == stream and _mentions(field_name, view.entity, to_dict(view).get("features", [])):
            yield f"view {name!r}"
    for name, pipeline in sorted(state.pipelines.items()):
        sources = [[*source.view.on, source.expression] for source in pipeline.features]
        if pipeline.request == stream and _mentions(field_name, sources, [pipeline.label.by]):
            yield f"pipeline {name!r}"
        label = pipeline.label
        if label.stream == stream and _mentions(field_name, [label.by, label.expression]):
            yield f"label of pipeline {name!r}"


def _mentions(field_name: str, *values: Any) -> bool:
    return mentioned_in(_texts(values))(field_name)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text within a JSON value but what its objects are called."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name != "name":
                yield from _texts(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)
