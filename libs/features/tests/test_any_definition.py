"""Whatever a view declares, live rings, the offline twin and brute force agree: definitions drawn at random, too."""

import random
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_testkit.brute_force import Logged
from tidemill_testkit.effort import examples
from tidemill_testkit.ring_agreement import Lived, Meanings, assert_all_agree, wanted_of
from tidemill_testkit.ring_world import RingWorld

SECOND = 1_000_000
BOOL, INT, FLOAT = definition.FIELD_TYPE_BOOL, definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64
STRING, TIME = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_TIMESTAMP
FIELDS: dict[str, Any] = {
    "who": STRING,
    "zone": INT,
    "at": TIME,
    "amount": FLOAT,
    "units": INT,
    "label": STRING,
    "flag": BOOL,
    "seen": TIME,
}
ENTITIES = [["who"], ["zone"], ["who", "zone"], ["zone", "who"], ["flag", "who"], ["seen"]]
VALUES: dict[str, Any] = {
    **FIELDS,
    "coalesce(units, 7)": INT,
    "abs(units)": INT,
    "case when flag then units else 3 end": INT,
    "amount * 2.0": FLOAT,
    "units + amount": FLOAT,
}
PREDICATES = [
    "amount > 1",
    "label = 'a'",
    "label in ('a', '')",
    "units is null",
    "flag",
    "not flag",
    "units >= 0 or amount < 0",
]
ANY: set[Any] = set(VALUES.values())
NUMBERS: set[Any] = {INT, FLOAT}
# What each aggregate takes, and the type of its feature; None: that of the expression.
AGGREGATES: dict[str, tuple[set[Any], Any]] = {
    "COUNT": (set(), INT),
    "RATE": (set(), FLOAT),
    "TIME_SINCE_LAST": (set(), FLOAT),
    "SUM": (NUMBERS, None),
    "MEAN": (NUMBERS, FLOAT),
    "MIN": (ANY - {STRING}, None),
    "MAX": (ANY - {STRING}, None),
    "FIRST": (ANY, None),
    "LAST": (ANY, None),
    "LAST_K": (ANY, None),
    "VARIANCE": (NUMBERS, FLOAT),
    "STD": (NUMBERS, FLOAT),
    "SKEW": (NUMBERS, FLOAT),
    "HISTOGRAM": (NUMBERS, INT),
    "DECAYED_SUM": (NUMBERS, FLOAT),
    "EWMA": (NUMBERS, FLOAT),
    "APPROX_DISTINCT": (ANY, INT),
    "QUANTILE": (NUMBERS, FLOAT),
    "TOP_K": (ANY - {FLOAT}, None),
}
WINDOWS_S = [10, 12, 15, 20, 30, 60, 90, 120, 600, 3_600]


def unless_null(combine: Any, *names: str) -> Any:
    """Return a function of the fields that is null where one of these is."""

    def of(fields: dict[str, Any]) -> Any:
        taken = [fields[name] for name in names]
        return None if None in taken else combine(*taken)

    return of


def either(fields: dict[str, Any]) -> bool | None:
    """Say `units >= 0 or amount < 0` with SQL's three values."""
    sides = (unless_null(lambda u: u >= 0, "units")(fields), unless_null(lambda a: a < 0, "amount")(fields))
    return True if True in sides else None if None in sides else False


MEANINGS: Meanings = {
    "coalesce(units, 7)": lambda fields: 7 if fields["units"] is None else fields["units"],
    "abs(units)": unless_null(abs, "units"),
    "case when flag then units else 3 end": lambda fields: fields["units"] if fields["flag"] else 3,
    "amount * 2.0": unless_null(lambda amount: amount * 2.0, "amount"),
    "units + amount": unless_null(lambda units, amount: units + amount, "units", "amount"),
    "amount > 1": unless_null(lambda amount: amount > 1, "amount"),
    "label = 'a'": unless_null(lambda label: label == "a", "label"),
    "label in ('a', '')": unless_null(lambda label: label in ("a", ""), "label"),
    "units is null": lambda fields: fields["units"] is None,
    "not flag": unless_null(lambda flag: not flag, "flag"),
    "units >= 0 or amount < 0": either,
}


def some_stream(dice: random.Random) -> definition.Stream:
    return definition.Stream(
        name="paid",
        fields=[definition.Field(name=name, type=kind, nullable=name != "at") for name, kind in FIELDS.items()],
        key_field="who",
        time_field="at",
        partitions=dice.choice([1, 2, 3]),
        lateness_ms=dice.choice([0, 5, 20, 1_000]) * 1000,
        late_policy=dice.choice([definition.LATE_POLICY_DROP, definition.LATE_POLICY_CORRECT]),
        dedup_window_ms=dice.choice([0, 0, 30, 500]) * 1000,
        max_future_ms=dice.choice([0, 2_500, 60_000]),
    )


def some_feature(dice: random.Random, number: int, *, aged: bool) -> definition.Aggregation:
    function = dice.choice(list(AGGREGATES))
    takes, kind = AGGREGATES[function]
    feature = definition.Aggregation(
        name=f"f{number}_{function.lower()}",
        function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
        window_ms=0 if function == "LAST" and aged and dice.random() < 0.3 else dice.choice(WINDOWS_S) * 1000,
        expression=dice.choice([text for text, of in VALUES.items() if of in takes]) if takes else "",
        where=dice.choice(PREDICATES) if dice.random() < 0.4 else "",
    )
    feature.type = VALUES[feature.expression] if kind is None else kind
    if function in ("LAST_K", "TOP_K"):
        feature.k = dice.choice([1, 2, 3, 5])
    elif function == "HISTOGRAM":
        feature.edges.extend(sorted(dice.sample([-4.0, -1.0, 0.0, 0.15, 1.0, 2.0, 7.0], dice.choice([1, 2, 3]))))
    elif function == "QUANTILE":
        feature.quantile = dice.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    elif function in ("DECAYED_SUM", "EWMA"):
        feature.half_life_ms = feature.window_ms // dice.choice([1, 3, 100])
    return feature


def some_view(dice: random.Random) -> definition.View:
    max_age_s = dice.choice([0, 5, 40, 40, 100, 4_000])
    features = [some_feature(dice, number, aged=bool(max_age_s)) for number in range(dice.choice([1, 2, 4, 7]))]
    exact = dice.random() < 0.5
    # The room that raw events have is in bytes: how many strings fit depends on their lengths.
    few = exact and not any(VALUES.get(one.expression) == STRING for one in features)
    return definition.View(
        name="v",
        stream="paid",
        entity=dice.choice(ENTITIES),
        max_age_ms=max_age_s * 1000,
        accuracy=definition.ACCURACY_EXACT if exact else definition.ACCURACY_HOP,
        budget_bytes=50_000_000,
        edge_events=dice.choice([0, 1, 2, 7]) if few else 0,
        features=features,
    )


def some_log(dice: random.Random, partitions: int) -> list[Logged]:
    span, drift_us = dice.choice([8, 40, 140, 1_200]), dice.choice([0, SECOND // 2, 4 * SECOND, 60 * SECOND])
    log = []
    for partition in range(partitions):
        offset = 0
        for number in range(dice.randrange(1, 26)):
            offset += dice.choice([1, 1, 1, 3])
            event_us = dice.randrange(span) * SECOND // 2 - dice.choice([0, 0, 1]) + number * drift_us
            if dice.random() < 0.1:
                event_us = dice.randrange(-70, 70) * SECOND
            fields = {
                "who": dice.choice(["ann", "ann", "ann", "bob", None, ""]),
                "zone": dice.choice([1, 1, 1, 2, None, -(2**63), 2**63 - 1]),
                "at": event_us,
                "amount": dice.choice([None, 0.1, 0.2, 0.3, -0.0, 0.0, 1e16, -1e16, 1.5, dice.uniform(-9, 9)]),
                "units": dice.choice([None, *range(-5, 6)]),
                "label": dice.choice([None, "", "a", "bé", "long text", "\ud800", "x" * 70]),
                "flag": dice.choice([None, True, False, True]),
                "seen": dice.choice([None, 0, 5 * SECOND, -7, event_us]),
            }
            identity = "same" if dice.random() < 0.08 else f"{partition}-{offset}"
            log.append(Logged(partition, offset, event_us, identity, fields))
    return log


@settings(max_examples=examples(60), deadline=None)
@given(seed=st.integers(0, 2**32))
@example(seed=1)
def test_any_view_over_any_log_is_what_brute_force_says_live_and_offline(seed: int) -> None:
    dice = random.Random(seed)
    stream, declared = some_stream(dice), some_view(dice)
    wanted = wanted_of(declared, stream, MEANINGS)
    log = some_log(dice, stream.partitions)
    known = sorted({tuple(record.fields[name] for name in declared.entity) for record in log}, key=repr)
    unknown = {"who": "nobody", "zone": 7, "flag": False, "seen": 99}
    keys = [*dice.sample(known, min(len(known), 6)), tuple(unknown[name] for name in declared.entity)]
    world = RingWorld(declared, stream, keys, wanted, capacity=200)
    crashes = dice.choices(["", "", "before", "between"], k=8)
    cut = [dice.randrange(4, 60) for _ in range(stream.partitions)]
    lived = Lived(dice.choices(range(1, 9), k=4), crashes, cut)
    after_s, shifts_us = [0, 10, 12, 20, 60, 600, 4_000], [0, 0, 1, -1, SECOND // 2, -3 * SECOND]
    moments = [dice.choice(log).event_us + dice.choice(after_s) * SECOND + dice.choice(shifts_us) for _ in range(4)]
    with np.errstate(all="ignore"):
        assert_all_agree(world, log, lived, moments)
