"""What changes between two definitions, as lines a person can read."""

from collections.abc import Iterator, Mapping
from typing import Any

from tidemill_contracts.canonical import to_dict
from tidemill_contracts.definition.v1 import definition_pb2 as definition


def differences(before: definition.Definition, after: definition.Definition) -> Iterator[str]:
    """Yield `path: old → new` for everything that differs; `+` and `-` mark what comes and goes.

    >>> old = definition.Definition(views=[definition.View(name="origin", max_age_ms=1000)])
    >>> new = definition.Definition(views=[definition.View(name="origin", max_age_ms=2000)])
    >>> list(differences(old, new))
    ["views.origin.max_age_ms: '1000' → '2000'"]
    """
    old, new = dict(_leaves(to_dict(before), "")), dict(_leaves(to_dict(after), ""))
    for path in dict.fromkeys([*old, *new]):
        if path not in new:
            yield f"- {path}: {old[path]!r}"
        elif path not in old:
            yield f"+ {path}: {new[path]!r}"
        elif old[path] != new[path]:
            yield f"{path}: {old[path]!r} → {new[path]!r}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every scalar with its path; a list's items go by their name where they have one."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            label = item.get("name", index) if isinstance(item, Mapping) else index
            yield from _leaves(item, f"{path}.{label}")
    else:
        yield path, value
