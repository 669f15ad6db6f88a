"""What changes between two definitions, as lines a person can read, in the words of definitions and not of the wire."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill.cli.explanations import shown_duration

_MILLISECONDS = "_ms"


def differences(before: definition.Definition, after: definition.Definition) -> Iterator[str]:
    """Yield `path: old → new` for everything that differs; `+` and `-` mark what comes and goes.

    >>> old = definition.Definition(views=[definition.View(name="origin", max_age_ms=3_600_000)])
    >>> new = definition.Definition(views=[definition.View(name="origin", max_age_ms=7_200_000, accuracy=1)])
    >>> list(differences(old, new))
    ['views.origin.max_age: 1h → 2h', '+ views.origin.accuracy: hop']
    """
    old, new = dict(_leaves(before, "")), dict(_leaves(after, ""))
    for path in dict.fromkeys([*old, *new]):
        if path not in new:
            yield f"- {path}{_told(old[path])}"
        elif path not in old:
            yield f"+ {path}{_told(new[path])}"
        elif old[path] != new[path]:
            yield f"{path}: {old[path]} → {new[path]}"


def _told(value: str) -> str:
    return f": {value}" if value else ""


def _leaves(message: Message, path: str) -> Iterator[tuple[str, str]]:
    """Yield every scalar with its path; a list's items go by their name where they have one."""
    for field, value in message.ListFields():
        here = f"{path}.{field.name}" if path else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in sorted(value):
                yield from _leaf(field.message_type.fields_by_name["value"], value[key], f"{here}.{key}")
        elif isinstance(value, str | bytes | Message) or not hasattr(value, "__len__"):
            yield from _leaf(field, value, here)
        elif field.message_type is None:
            yield here, ", ".join(_shown(field, item) for item in value)
        else:
            for index, item in enumerate(value):
                name = getattr(item, "name", "")
                place = f"{here}.{name or index}"
                # A name is told by the path.
                yield from (leaf for leaf in _leaf(field, item, place) if not name or leaf[0] != f"{place}.name")


def _leaf(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, Message):
        yield path.removesuffix(_MILLISECONDS), _shown(field, value)
    elif isinstance(value, Value):
        yield path, repr(MessageToDict(value))
    elif value.ListFields():
        yield from _leaves(value, path)
    else:
        # That it is there says everything.
        yield path, ""


def _shown(field: FieldDescriptor, value: Any) -> str:
    """Return a value as definitions write it.

    >>> feature = definition.Aggregation(function="AGGREGATION_FUNCTION_LAST_K", half_life_ms=1_500, where="amount > 1")
    >>> [_shown(field, value) for field, value in feature.ListFields()]
    ['last_k', "'amount > 1'", '1500ms']
    """
    if field.enum_type is not None:
        # Names of an enum's values begin with its own.
        common = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return field.enum_type.values_by_number[value].name.removeprefix(common).lower()
    if field.name.endswith(_MILLISECONDS):
        return shown_duration(value * 1000) if value % 1000 == 0 else f"{value}ms"
    return repr(value)
