"""What an applied definition changes: pure functions over registered records; `compatibility` says what it breaks."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tidemill_contracts.bounds import MAX_NAME_CHARS, faults
from tidemill_contracts.canonical import message_hash, view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.fits import Shape, sources_of

from tidemill_registry.compatibility import (
    Break,
    State,
    find_breaks,
    pipelines_in_use,
    streams_in_use,
    views_in_use,
    views_of,
)

N = TypeVar("N", definition.Stream, definition.View, definition.Pipeline)
Key = tuple[str, str]
Records = Mapping[Key, definition.DefinitionRecord]

KINDS = ("stream", "view", "pipeline")
# Names become topic names, Redis keys and file names.
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")


class InvalidDefinitionError(ValueError):
    """The definition does not hold together by itself."""


class UnknownObjectError(ValueError):
    """What is to end was never registered; `kind` says what it would be."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} {name!r} is registered")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Object:
    """One stream, view or pipeline with everything that it refers to."""

    kind: str
    name: str
    hash: str
    closure: definition.Definition

    @property
    def key(self) -> Key:
        return (self.kind, self.name)


@dataclass(frozen=True, slots=True)
class Change:
    """What applying makes of one object; `revision` is the one that it has afterwards."""

    object: Object
    # "created", "changed", "unchanged" or "retired".
    change: str
    revision: int
    # Of a stream: fields that it has no more, and, where it is gone, what it was.
    removed: Sequence[definition.Field] = ()
    was: definition.Stream | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """What is to end, and what uses it, as people call it.

    `readers`: by view, the model versions in use that read it, but for those of pipelines that end along. `users`: by
    pipeline, its versions in use and its runs under way.
    """

    views: Sequence[str] = ()
    pipelines: Sequence[str] = ()
    streams: Sequence[str] = ()
    readers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def objects(self) -> list[Key]:
        """Return what ends, in the order in which it is told: what reads before what is read."""
        ended = (("pipeline", self.pipelines), ("view", self.views), ("stream", self.streams))
        return [(kind, name) for kind, names in ended for name in sorted(set(names))]


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying would do, in the order in which the records are published.

    With breaks it is not done, unless they are allowed and none of them is final.
    """

    changes: list[Change]
    breaks: list[Break]
    # Sentences on champions that cannot be computed by what is applied.
    outdated: Sequence[str] = ()


def plan_changes(
    applied: definition.Definition, registered: Records, ending: Ending | None = None, *, allow_breaking: bool = False
) -> Plan:
    """Return what applying a definition, and ending objects, would change, and what it would break.

    Raises `InvalidDefinitionError` where the definition does not hold together.
    """
    ending = ending or Ending()
    objects = objects_of(applied)
    if not (objects or ending.objects()):
        raise InvalidDefinitionError("the definition declares nothing: give it at least one stream")
    touched = {item.key for item in objects}
    for kind, name in sorted(touched & set(ending.objects())):
        raise InvalidDefinitionError(f"{kind} {name!r} is declared and retired at once: leave one of them out")
    ends = [_ended(key, registered) for key in ending.objects()]
    changes = [_change(item, registered) for item in objects]
    before = _state(registered).without(pipelines=ending.pipelines)
    # What ended before has runs that nobody waits for.
    leaving = [one.object.name for one in ends if (one.object.kind, one.change) == ("pipeline", "retired")]
    breaks = pipelines_in_use(leaving, ending.users)
    in_use = views_in_use(ending.views, before.with_applied(applied), ending.readers)
    breaks += in_use
    if not in_use:
        # What they read of their streams holds nobody up any more.
        before = before.without(views=ending.views)
    breaks += streams_in_use(ending.streams, before.with_applied(applied))
    breaks += find_breaks(before, applied)
    if not breaks or (allow_breaking and not any(one.final for one in breaks)):
        redefined = {change.object.key for change in changes if change.change == "changed"}
        changes += [_change(item, registered) for item in _followers(before.with_applied(applied), redefined, touched)]
    ordered = sorted(changes, key=lambda change: (KINDS.index(change.object.kind), change.object.name))
    # Last, so that whoever reads the topic has heard before that the pipelines do without.
    return Plan(ordered + ends, breaks)


def objects_of(applied: definition.Definition) -> list[Object]:
    """Return every object of a definition with its closure.

    Raises `InvalidDefinitionError`, naming the object and what it lacks, or the place and what it may be.
    """
    if fault := next(faults(applied), None):
        raise InvalidDefinitionError(fault)
    streams = _by_name("stream", applied.streams)
    views = _by_name("view", applied.views)
    pipelines = _by_name("pipeline", applied.pipelines)
    for stream in streams.values():
        _check_stream(stream)
    closures = [("stream", name, definition.Definition(streams=[stream])) for name, stream in streams.items()]
    closures += [("view", name, _view_closure(view, streams)) for name, view in views.items()]
    closures += [("pipeline", name, _pipeline_closure(item, streams, views)) for name, item in pipelines.items()]
    return [Object(kind, name, message_hash(closure), closure) for kind, name, closure in closures]


def _state(registered: Records) -> State:
    """Return what is registered by name; each object's own record is what counts."""
    streams, views, pipelines, removed, ended = {}, {}, {}, {}, {}
    for record in registered.values():
        closure = record.definition
        if record.removed_fields:
            removed[record.name] = {one.name: one for one in record.removed_fields}
        if record.HasField("retired_stream"):
            ended[record.name] = record.retired_stream
        if record.retired:
            continue
        if record.kind == "stream":
            streams[record.name] = closure.streams[0]
        elif record.kind == "view":
            views[record.name] = closure.views[0]
        else:
            pipelines[record.name] = closure.pipelines[0]
    return State(streams, views, pipelines, removed, ended)


def _change(item: Object, registered: Records) -> Change:
    record = registered.get(item.key)
    if record is None:
        return Change(item, "created", 1)
    removed = _removed(record, item.closure.streams if item.kind == "stream" else ())
    if record.retired:
        return Change(item, "created", record.revision + 1, removed)
    if record.hash == item.hash:
        return Change(item, "unchanged", record.revision, removed)
    return Change(item, "changed", record.revision + 1, removed)


def _ended(key: Key, registered: Records) -> Change:
    """Return the end of an object. Raises `UnknownObjectError` where there never was one."""
    record = registered.get(key)
    if record is None:
        raise UnknownObjectError(*key)
    item, removed = Object(*key, record.hash, definition.Definition()), _removed(record, ())
    if record.retired:
        return Change(item, "unchanged", record.revision, removed)
    was = record.definition.streams[0] if record.kind == "stream" else None
    return Change(item, "retired", record.revision + 1, removed, was)


def _removed(before: definition.DefinitionRecord, after: Sequence[definition.Stream]) -> list[definition.Field]:
    """Return the fields that a stream had at any time and has no more; of a view or a pipeline, none."""
    if before.kind != "stream":
        return []
    had = [*before.removed_fields, *(one for stream in before.definition.streams for one in stream.fields)]
    has = {one.name for stream in after for one in stream.fields}
    return [one for one in {one.name: one for one in had}.values() if one.name not in has]


def _followers(state: State, redefined: set[Key], touched: set[Key]) -> Iterator[Object]:
    """Yield views and pipelines outside the definition whose stream changes under them: their closure follows."""
    for name, view in state.views.items():
        if ("view", name) not in touched and ("stream", view.stream) in redefined:
            closure = _view_closure(view, state.streams)
            yield Object("view", name, message_hash(closure), closure)
    for name, pipeline in state.pipelines.items():
        used = {("view", view) for view in views_of(pipeline)}
        used |= {("stream", state.views[view].stream) for view in views_of(pipeline)}
        used |= {("stream", pipeline.request), ("stream", pipeline.label.stream)}
        if ("pipeline", name) not in touched and used & redefined:
            closure = _pipeline_closure(pipeline, state.streams, state.views)
            yield Object("pipeline", name, message_hash(closure), closure)


def _by_name(kind: str, items: Iterable[N]) -> dict[str, N]:
    found: dict[str, N] = {}
    for item in items:
        # Kafka's metrics cannot tell "_" from ".", so that a stream's name, which becomes a topic's, has no "_".
        well_formed = _NAME.fullmatch(item.name) and len(item.name) <= MAX_NAME_CHARS
        if not well_formed or (kind == "stream" and "_" in item.name):
            raise InvalidDefinitionError(
                f"{kind} name {item.name!r}: use at most {MAX_NAME_CHARS} lower-case letters, digits and hyphens"
            )
        if item.name in found:
            raise InvalidDefinitionError(f"{kind} {item.name!r} is declared twice: keep one")
        found[item.name] = item
    return found


def _check_stream(stream: definition.Stream) -> None:
    fields = {field.name: field for field in stream.fields}
    if len(fields) != len(stream.fields):
        raise InvalidDefinitionError(f"stream {stream.name!r} declares a field twice: keep one")
    for name in fields:
        if name.startswith("_"):
            raise InvalidDefinitionError(
                f"stream {stream.name!r}: field {name!r}: the offline log's own columns begin with _; "
                "begin it with a letter"
            )
    for role, name in (("key", stream.key_field), ("time", stream.time_field)):
        field = fields.get(name)
        if field is None:
            raise InvalidDefinitionError(f"stream {stream.name!r}: its {role} field {name!r} is not among its fields")
        if field.nullable:
            raise InvalidDefinitionError(f"stream {stream.name!r}: its {role} field {name!r} must not be nullable")
    if fields[stream.key_field].type == definition.FIELD_TYPE_FLOAT64:
        raise InvalidDefinitionError(
            f"stream {stream.name!r}: its key field must be no float64: 7 and 7.0 are two keys"
        )
    if fields[stream.time_field].type != definition.FIELD_TYPE_TIMESTAMP:
        raise InvalidDefinitionError(f"stream {stream.name!r}: its time field must be a timestamp")


def offered_by(closure: definition.Definition) -> Shape:
    """Return what a pipeline's closure offers its versions; which features are categories is not known here."""
    streams = {stream.name: stream for stream in closure.streams}
    views = {view.name: view_hash(view, streams[view.stream]) for view in closure.views}
    return Shape({}, views, sources_of(closure.pipelines[0]))


def _view_closure(view: definition.View, streams: Mapping[str, definition.Stream]) -> definition.Definition:
    stream = _found(streams, view.stream, f"view {view.name!r}", "stream")
    fields = {field.name for field in stream.fields}
    for name in view.entity:
        if name not in fields:
            raise InvalidDefinitionError(f"view {view.name!r}: stream {stream.name!r} has no field {name!r}")
    if not view.entity:
        raise InvalidDefinitionError(f"view {view.name!r} names no entity: say by which field it is kept")
    return definition.Definition(streams=[stream], views=[view])


def _pipeline_closure(
    pipeline: definition.Pipeline,
    streams: Mapping[str, definition.Stream],
    views: Mapping[str, definition.View],
) -> definition.Definition:
    owner = f"pipeline {pipeline.name!r}"
    used_views = [_found(views, name, owner, "view") for name in views_of(pipeline)]
    used_streams = {pipeline.request, pipeline.label.stream, *(view.stream for view in used_views)}
    return definition.Definition(
        streams=[_found(streams, name, owner, "stream") for name in sorted(used_streams)],
        views=used_views,
        pipelines=[pipeline],
    )


def _found(items: Mapping[str, N], name: str, owner: str, kind: str) -> N:
    if name not in items:
        raise InvalidDefinitionError(f"{owner} refers to {kind} {name!r}, which the definition does not hold: add it")
    return items[name]
