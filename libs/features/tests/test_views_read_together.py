"""Views of one shape are merged together: each answers as it does alone, whatever the others are asked."""

from collections.abc import Sequence

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import column_of
from tidemill_features.fold import Events, ViewShards
from tidemill_features.plan import ViewPlan, compile_view
from tidemill_features.reader import Lookup, Reader, ViewValues

MINUTE_US = 60_000_000
NOON_US = 1_370_347_200_000_000
ENTITIES = ("payer", "shop", "city")
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
STREAM = definition.Stream(
    name="paid",
    fields=[
        *(definition.Field(name=name, type=_STRING) for name in (*ENTITIES, "what")),
        definition.Field(name="amount", type=_FLOAT, nullable=True),
    ],
    key_field="payer",
    partitions=2,
)


def plan(entity: str, minutes: int = 60) -> ViewPlan:
    declared = [
        ("count", definition.AGGREGATION_FUNCTION_COUNT, minutes, "", _INT),
        ("mean", definition.AGGREGATION_FUNCTION_MEAN, 24 * 60, "amount", _FLOAT),
        ("most", definition.AGGREGATION_FUNCTION_MAX, minutes, "amount", _FLOAT),
        ("what", definition.AGGREGATION_FUNCTION_LAST, minutes, "what", _STRING),
    ]
    features = [
        definition.Aggregation(
            name=f"{entity}_{name}", function=function, window_ms=length * 60_000, expression=expression, type=kind
        )
        for name, function, length, expression, kind in declared
    ]
    return compile_view(definition.View(name=entity, stream="paid", entity=[entity], features=features), STREAM)


PLANS = [*(plan(entity) for entity in ENTITIES), plan("what", 120)]


def events(count: int = 400) -> Events:
    chance = np.random.default_rng(3)
    texts = {name: [f"{name}{number}" for number in chance.integers(0, 6, count)] for name in (*ENTITIES, "what")}
    amounts = [None if one < 1 else float(one) for one in chance.uniform(0, 9, count)]
    return Events(
        np.arange(count) % 2,
        np.arange(count) // 2,
        NOON_US - chance.integers(0, 90, count) * MINUTE_US,
        {**{name: column_of(values, _STRING) for name, values in texts.items()}, "amount": column_of(amounts, _FLOAT)},
    )


def stored() -> dict[bytes, bytes]:
    """Return what Redis holds of all views, checkpoints aside."""
    found: dict[bytes, bytes] = {}
    folded = events()
    for one in PLANS:
        shards = ViewShards(one, "default", 10_000)
        rows = shards.find(folded)
        shards.fold(folded, shards.load(rows, [None] * len(rows.keys), lambda _: bytes(16)))
        found |= dict(shards.dirty({0: 200, 1: 200}))
    return found


def read(plans: Sequence[ViewPlan], lookups: Sequence[Lookup], as_of_us: int) -> list[ViewValues]:
    reader, rings = Reader(plans), stored()
    request = reader.request(lookups)
    return reader.values(request, [rings.get(key) for key in request.keys], as_of_us).views


def same(one: ViewValues, other: ViewValues) -> bool:
    pairs = list(zip(one.features, other.features, strict=True))
    arrays = [(getattr(a, name), getattr(b, name)) for a, b in pairs for name in ("values", "status", "event_us")]
    return (
        (one.view, one.view_hash, [a.name for a in one.features])
        == (other.view, other.view_hash, [b.name for b in other.features])
        and all(a.tobytes() == b.tobytes() if a.dtype != object else a.tolist() == b.tolist() for a, b in arrays)
        and one.head_excluded.tolist() == other.head_excluded.tolist()
    )


def test_each_view_answers_as_it_does_alone() -> None:
    lookups = [
        Lookup("payer", [("payer1",), ("payer4",), ("nobody",)]),
        Lookup("shop", [("shop2",), (None,), ("shop2",), ("shop0",)]),
        Lookup("what", [("what1",), ("what3",)]),
        Lookup("city", [(None,)]),
        Lookup("payer", [("payer5",)]),
    ]
    by_name = {one.name: one for one in PLANS}
    for as_of_us in (NOON_US, NOON_US - 30 * MINUTE_US, NOON_US + 20 * 60 * MINUTE_US):
        together = read(PLANS, lookups, as_of_us)
        alone = [read([by_name[lookup.view]], [lookup], as_of_us)[0] for lookup in lookups]
        assert [same(one, other) for one, other in zip(together, alone, strict=True)] == [True] * len(lookups)
    assert len({id(view.merger) for view in Reader(PLANS).views.values()}) == 2


def test_a_view_without_entities_answers_beside_others() -> None:
    found = read(PLANS, [Lookup("payer", []), Lookup("shop", [("shop1",)])], NOON_US)
    assert [len(view.head_excluded) for view in found] == [0, 1]
    assert found[1].features[0].values[0] > 0
