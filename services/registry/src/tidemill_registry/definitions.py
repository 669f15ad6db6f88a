"""What an applied definition changes, and whom it would break: pure functions over registered records."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tidemill_contracts.canonical import message_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition

N = TypeVar("N", definition.Stream, definition.View, definition.Pipeline)
Key = tuple[str, str]
Records = Mapping[Key, definition.DefinitionRecord]

KINDS = ("stream", "view", "pipeline")
# Names become topic names, Redis keys and file names.
MAX_NAME_LENGTH = 100
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")
MAX_PARTITIONS = 256


class InvalidDefinitionError(ValueError):
    """The definition does not hold together by itself."""


class ConflictError(ValueError):
    """The definition would change what others stand on."""


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
    # "created", "changed" or "unchanged".
    change: str
    revision: int


def plan_changes(applied: definition.Definition, registered: Records) -> list[Change]:
    """Return what applying would do, in the order in which the records are published.

    Raises `InvalidDefinitionError` where the definition does not hold together, `ConflictError` where it redefines
    something that a pipeline outside of it uses.
    """
    objects = objects_of(applied)
    touched = {item.key for item in objects}
    changes = [_change(item, registered) for item in objects]
    redefined = {change.object.key for change in changes if change.change == "changed"}
    _refuse_moved_partitions(applied, registered)
    _refuse_conflicts(redefined, touched, registered)
    followers = [_change(item, registered) for item in _dependent_views(applied, redefined, touched, registered)]
    return sorted([*changes, *followers], key=lambda change: (KINDS.index(change.object.kind), change.object.name))


def objects_of(applied: definition.Definition) -> list[Object]:
    """Return every object of a definition with its closure.

    Raises `InvalidDefinitionError`, naming the object and what it lacks.
    """
    streams = _by_name("stream", applied.streams)
    views = _by_name("view", applied.views)
    pipelines = _by_name("pipeline", applied.pipelines)
    if not (streams or views or pipelines):
        raise InvalidDefinitionError("the definition declares nothing: give it at least one stream")
    for stream in streams.values():
        _check_stream(stream)
    closures = [("stream", name, definition.Definition(streams=[stream])) for name, stream in streams.items()]
    closures += [("view", name, _view_closure(view, streams)) for name, view in views.items()]
    closures += [("pipeline", name, _pipeline_closure(item, streams, views)) for name, item in pipelines.items()]
    return [Object(kind, name, message_hash(closure), closure) for kind, name, closure in closures]


def users_of(key: Key, registered: Records) -> list[str]:
    """Return the names of the registered pipelines whose closure holds the object."""
    kind, name = key
    return sorted(
        record.name
        for record in registered.values()
        if record.kind == "pipeline" and name in _names(record.definition, kind)
    )


def _names(closure: definition.Definition, kind: str) -> set[str]:
    return {item.name for item in (closure.streams if kind == "stream" else closure.views)}


def _change(item: Object, registered: Records) -> Change:
    record = registered.get(item.key)
    if record is None:
        return Change(item, "created", 1)
    if record.hash == item.hash:
        return Change(item, "unchanged", record.revision)
    return Change(item, "changed", record.revision + 1)


def _refuse_conflicts(redefined: set[Key], touched: set[Key], registered: Records) -> None:
    for key in sorted(redefined):
        kind, name = key
        if kind == "pipeline":
            continue
        others = [user for user in users_of(key, registered) if ("pipeline", user) not in touched]
        if others:
            raise ConflictError(
                f"{kind} {name!r} is used by {', '.join(map(repr, others))}: "
                f"give the new {kind} a name of its own, or apply those pipelines with it"
            )


def _refuse_moved_partitions(applied: definition.Definition, registered: Records) -> None:
    for stream in applied.streams:
        record = registered.get(("stream", stream.name))
        if record is None:
            continue
        before = record.definition.streams[0]
        if before.partitions != stream.partitions:
            raise ConflictError(
                f"stream {stream.name!r} has {before.partitions} partitions, not {stream.partitions}: "
                "keys would move between partitions and lose their order; declare a new stream"
            )


def _dependent_views(
    applied: definition.Definition, redefined: set[Key], touched: set[Key], registered: Records
) -> Iterator[Object]:
    """Yield registered views outside the definition whose stream changes under them: their closure follows."""
    streams = {stream.name: stream for stream in applied.streams}
    for record in registered.values():
        if record.kind != "view" or ("view", record.name) in touched:
            continue
        view = record.definition.views[0]
        if ("stream", view.stream) in redefined:
            closure = _view_closure(view, streams)
            yield Object("view", view.name, message_hash(closure), closure)


def _by_name(kind: str, items: Iterable[N]) -> dict[str, N]:
    found: dict[str, N] = {}
    for item in items:
        # Kafka's metrics cannot tell "_" from ".", so that a stream's name, which becomes a topic's, has no "_".
        well_formed = _NAME.fullmatch(item.name) and len(item.name) <= MAX_NAME_LENGTH
        if not well_formed or (kind == "stream" and "_" in item.name):
            raise InvalidDefinitionError(
                f"{kind} name {item.name!r}: use at most {MAX_NAME_LENGTH} lower-case letters, digits and hyphens"
            )
        if item.name in found:
            raise InvalidDefinitionError(f"{kind} {item.name!r} is declared twice: keep one")
        found[item.name] = item
    return found


def _check_stream(stream: definition.Stream) -> None:
    fields = {field.name: field for field in stream.fields}
    if len(fields) != len(stream.fields):
        raise InvalidDefinitionError(f"stream {stream.name!r} declares a field twice: keep one")
    for role, name in (("key", stream.key_field), ("time", stream.time_field)):
        field = fields.get(name)
        if field is None:
            raise InvalidDefinitionError(f"stream {stream.name!r}: its {role} field {name!r} is not among its fields")
        if field.nullable:
            raise InvalidDefinitionError(f"stream {stream.name!r}: its {role} field {name!r} must not be nullable")
    if fields[stream.time_field].type != definition.FIELD_TYPE_TIMESTAMP:
        raise InvalidDefinitionError(f"stream {stream.name!r}: its time field must be a timestamp")
    if not 1 <= stream.partitions <= MAX_PARTITIONS:
        raise InvalidDefinitionError(f"stream {stream.name!r}: partitions must be 1 to {MAX_PARTITIONS}")


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
    names = sorted({source.view.view for source in pipeline.features if source.HasField("view")})
    used_views = [_found(views, name, owner, "view") for name in names]
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
