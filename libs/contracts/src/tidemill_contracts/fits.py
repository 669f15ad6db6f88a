"""Whether a model version still fits a definition: one rule for registry, serving and training; pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tidemill_contracts.definition.v1 import definition_pb2 as definition

_TEXT_CHARS = 120


class Shape(NamedTuple):
    """What a version reads, or a definition offers.

    `columns`: feature name to whether it is a category; `views`: view name to view hash; `sources`: as `sources_of`
    says, empty where nobody noted them.
    """

    columns: Mapping[str, bool]
    views: Mapping[str, str]
    sources: Mapping[str, str] = MappingProxyType({})


def sources_of(pipeline: definition.Pipeline) -> dict[str, str]:
    """Return how each source of a pipeline's vector is made: its expression, or its view and the look-up's fields."""
    return {
        one.name: f"view {one.view.view} by {', '.join(one.view.on)}" if one.HasField("view") else one.expression
        for one in pipeline.features
    }


def misfit(needs: Shape, offered: Shape) -> str | None:
    """Return why a version cannot be computed by a definition, as what follows "version 3 "; None where it can.

    A definition may offer more. A view of another hash, or a source that is made in another way, gives other values
    under the same names.
    """
    for name, category in needs.columns.items():
        if offered.columns.get(name) is not category:
            return f"needs the {'category' if category else 'number'} {name!r}, which is not declared"
    for view, view_hash in needs.views.items():
        if view not in offered.views:
            return f"reads view {view!r}, which is not declared"
        if offered.views[view] != view_hash:
            return f"was trained on another definition of view {view!r}"
    for name, made in needs.sources.items() if offered.sources else ():
        if name not in offered.sources:
            return f"needs {name!r}, which is not declared"
        if offered.sources[name] != made:
            return f"was trained with {name!r} as {_short(made)!r}, which is {_short(offered.sources[name])!r} now"
    return None


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS] + "…"
