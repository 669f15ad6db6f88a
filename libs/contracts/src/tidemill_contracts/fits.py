"""Whether a model version still fits a definition: one rule for registry, serving and training; pure."""

from collections.abc import Mapping
from typing import NamedTuple


class Shape(NamedTuple):
    """What a version reads, or a definition offers.

    `columns`: feature name to whether it is a category; `views`: view name to view hash.
    """

    columns: Mapping[str, bool]
    views: Mapping[str, str]


def misfit(needs: Shape, offered: Shape) -> str | None:
    """Return why a version cannot be computed by a definition, as what follows "version 3 "; None where it can.

    A definition may offer more. A view of another hash gives other values under the same names.
    """
    for name, category in needs.columns.items():
        if offered.columns.get(name) is not category:
            return f"needs the {'category' if category else 'number'} {name!r}, which is not declared"
    for view, view_hash in needs.views.items():
        if view not in offered.views:
            return f"reads view {view!r}, which is not declared"
        if offered.views[view] != view_hash:
            return f"was trained on another definition of view {view!r}"
    return None
