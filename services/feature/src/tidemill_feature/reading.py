"""From a GetFeatures request to look-ups; pure. Whatever cannot be looked up is refused for one named reason."""

import math
from collections.abc import Iterable, Mapping, Sequence

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.instants import EARLIEST_US, LATEST_US, format_us
from tidemill_contracts.reasons import Reason
from tidemill_features.layout import EntityValue
from tidemill_features.plan import ViewPlan
from tidemill_features.reader import Lookup
from tidemill_runtime.errors import Poison

from tidemill_feature.registered import Definitions

_STRING = definition.FIELD_TYPE_STRING
_FIELDS: Mapping[int, str] = {
    definition.FIELD_TYPE_BOOL: "bool_value",
    definition.FIELD_TYPE_INT64: "int64_value",
    definition.FIELD_TYPE_FLOAT64: "float64_value",
    _STRING: "string_value",
    definition.FIELD_TYPE_TIMESTAMP: "timestamp_us",
}
_HASH_DIGITS_MIN = 8
# A stream that names no bound of its own.
_EVENT_BYTES_MAX = 1_000_000


def lookups(views: Sequence[messages.ViewKeys], definitions: Definitions, rows_max: int) -> list[Lookup]:
    """Return what a request asks for. Raises `Poison` naming the view, its version, or the key that does not fit."""
    check_rows(sum(len(view.keys) for view in views), rows_max)
    return [_lookup(view, definitions) for view in views]


def check_rows(rows: int, rows_max: int) -> None:
    """Raise `Poison` for more keys than one call may ask for."""
    if rows > rows_max:
        raise Poison(Reason.OUT_OF_RANGE, f"{rows} keys; at most {rows_max} are read at once", field="views.keys")


def instant(as_of_us: int, now_us: int) -> int:
    """Return the moment that a request asks for, 0 being now. Raises `Poison`."""
    check_instant(as_of_us, "as_of_us")
    return as_of_us or now_us


def check_instant(instant_us: int, field: str) -> None:
    """Raise `Poison` for an instant that no event can have."""
    if not EARLIEST_US <= instant_us < LATEST_US:
        bounds = f"{format_us(EARLIEST_US)} to {format_us(LATEST_US)}"
        raise Poison(Reason.OUT_OF_RANGE, f"it lies outside {bounds}", field=field)


def plan_of(view: str, definitions: Definitions, view_hash: str = "") -> ViewPlan:
    """Return a view's plan. Raises `Poison` where there is none, or none of this version."""
    plan = definitions.plans.get(view)
    if plan is None:
        if fault := definitions.faults.get(view):
            raise Poison(Reason.UNSUPPORTED, f"view {view!r} cannot be computed: {fault}", field="views.view")
        fix = "known: " + (", ".join(sorted(definitions.plans)) or "none")
        raise Poison(Reason.UNKNOWN_VIEW, f"no view {_shown(view)} is registered", field="views.view", fix=fix)
    if not is_version(view_hash, plan.hash):
        raise Poison(
            Reason.UNKNOWN_VERSION,
            f"view {view!r} is not registered in version {_shown(view_hash)}",
            field="views.view_hash",
            fix=f"registered: {plan.hash}",
        )
    return plan


def is_version(wanted: str, view_hash: str) -> bool:
    """Say whether a hash, or enough of its first digits, is this view's; nothing is any."""
    digits = wanted.removeprefix("sha256:")
    return not wanted or (len(digits) >= _HASH_DIGITS_MIN and view_hash.removeprefix("sha256:").startswith(digits))


def _shown(text: str) -> str:
    """Return a caller's text as a message quotes it."""
    return repr(text if len(text) <= 80 else f"{text[:77]}…")


def _lookup(asked: messages.ViewKeys, definitions: Definitions) -> Lookup:
    plan = plan_of(asked.view, definitions, asked.view_hash)
    bytes_max = key_bytes_max(plan, definitions)
    keys: Sequence[tuple[EntityValue, ...]] | None = None
    if plan.entity_types == (_STRING,):
        keys = _texts(asked.keys, bytes_max)
    if keys is None:
        keys = [entity_values(key.values, plan, bytes_max) for key in asked.keys]
    return Lookup(plan.name, keys)


def _texts(keys: Iterable[messages.EntityKey], bytes_max: int) -> list[tuple[str]] | None:
    """Return keys of one text each, as most are; None where any needs a closer look."""
    found = []
    for key in keys:
        values = key.values
        # Empty also where it is null, or of another type.
        if len(values) != 1 or not (text := values[0].string_value) or len(text) * 4 > bytes_max:
            return None
        found.append((text,))
    return found


def key_bytes_max(plan: ViewPlan, definitions: Definitions) -> int:
    """Return how long a text may be that some event of the view's stream can carry."""
    return definitions.catalogue.streams[plan.stream].max_event_bytes or _EVENT_BYTES_MAX


def entity_values(values: Iterable[messages.Scalar], plan: ViewPlan, bytes_max: int) -> tuple[EntityValue, ...]:
    """Return one key of a view. Raises `Poison` where it does not fit the view's entity."""
    given = tuple(values)
    if len(given) != len(plan.entity):
        raise Poison(
            Reason.MISSING_FIELD,
            f"a key of view {plan.name!r} has {len(plan.entity)} values, not {len(given)}",
            field="views.keys",
            fix=f"give {', '.join(plan.entity)} in this order",
        )
    return tuple(
        [
            _value(scalar, kind, name, plan.name, bytes_max)
            for scalar, kind, name in zip(given, plan.entity_types, plan.entity, strict=True)
        ]
    )


def _value(scalar: messages.Scalar, kind: int, name: str, view: str, bytes_max: int) -> EntityValue:
    which = scalar.WhichOneof("value")
    if which is None:
        return None
    field = f"views.keys.{name}"
    if which != _FIELDS[kind]:
        if which == "float64_value" and not math.isfinite(scalar.float64_value):
            raise Poison(Reason.NON_FINITE, f"{name!r} of view {view!r} is {scalar.float64_value}", field=field)
        raise Poison(Reason.WRONG_TYPE, f"{name!r} of view {view!r} is {_FIELDS[kind]}, not {which}", field=field)
    value: EntityValue = getattr(scalar, which)
    if isinstance(value, str):
        check_text(value, field, bytes_max)
    elif which == "timestamp_us":
        check_instant(scalar.timestamp_us, field)
    return value


def check_text(text: str, field: str, bytes_max: int) -> None:
    """Raise `Poison` for a text that no event can carry. The empty one is an entity like any other."""
    # A character has at most four bytes: most texts need no second look.
    if len(text) * 4 > bytes_max and len(text.encode("utf-8", "surrogatepass")) > bytes_max:
        message = f"it is longer than {bytes_max:,} bytes, the most that an event of its stream may have"
        raise Poison(Reason.OVERSIZED, message, field=field)
