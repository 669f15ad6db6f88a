"""What counts as skew between serving and training, whom it is measured on, and what is said of it."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tidemill_contracts.cloudevents import from_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_feature.archiving import served_json
from tidemill_feature.skew import Difference, Period, chosen, differences, due, row_of, served_of
from tidemill_feature.skew_report import EXAMPLES_MAX, Sample, outgoing, skew_record
from tidemill_features.finalise import HEAD_EXCLUDED_BIT
from tidemill_features.vector import PipelineVector, VectorRows, compile_vector

DAY_US = 86_400_000_000
PRESENT, NULL, NOT_FOUND = 1, 2, 3
_STRING, _FLOAT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64

PAID = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=_STRING),
        definition.Field(name="amount", type=_FLOAT),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=1,
)
PAYER = definition.View(
    name="payer",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_HOP,
    features=[
        definition.Aggregation(
            name="mean_1h",
            function=definition.AGGREGATION_FUNCTION_MEAN,
            window_ms=3_600_000,
            expression="amount",
            type=_FLOAT,
        ),
        definition.Aggregation(
            name="last_1h",
            function=definition.AGGREGATION_FUNCTION_LAST,
            window_ms=3_600_000,
            expression="payer",
            type=_STRING,
        ),
    ],
)
PIPELINE = definition.Pipeline(
    name="risk",
    request="paid",
    features=[
        definition.FeatureSource(name="doubled", expression="amount * 2"),
        definition.FeatureSource(name="who", view=definition.ViewLookup(view="payer", on=["payer"])),
        definition.FeatureSource(name="amount", expression="amount"),
    ],
)


@pytest.fixture(scope="module")
def vector() -> PipelineVector:
    return compile_vector(PIPELINE, {"payer": PAYER}, {"paid": PAID})


def twin(vector: PipelineVector, numbers: Sequence[float], category: str | None, statuses: Sequence[int]) -> VectorRows:
    """Return one recomputed row."""
    named = [name for name, category in zip(vector.names, vector.category, strict=True) if not category]
    columns = {name: np.array([number]) for name, number in zip(named, numbers, strict=True)}
    status = np.array([statuses], np.uint8)
    return VectorRows(
        vector.names, vector.category, columns, {"who.last_1h": [category]}, status, np.zeros((1, 4), np.int64)
    )


def compared(
    vector: PipelineVector, served: tuple[Any, Any, Any], recomputed: tuple[Any, Any, Any]
) -> dict[str, Difference]:
    """Return each feature's difference between one served row and one recomputed row."""
    numbers, category, statuses = served
    by_name = dict(zip([name for name in vector.names if name != "who.last_1h"], numbers, strict=True))
    status = dict(zip(vector.names, statuses, strict=True))
    features = serving.ServedFeatures(
        numbers=[by_name[name] for name, category in SCHEMA if not category],
        categories=[category],
        statuses=bytes(status[name] for name, _ in SCHEMA),
    )
    row = row_of(vector, SCHEMA, served_json(features))
    assert row is not None
    kept = served_of(vector, [row])
    return {one.name: one for one in differences(vector, kept, twin(vector, *recomputed))}


# Another order than the vector's: a version keeps that of the definition which it was trained under.
SCHEMA = (("who.mean_1h", False), ("amount", False), ("doubled", False), ("who.last_1h", True))

HEALTHY = ([2.0, 1.0, 1.0], "u", [PRESENT] * 4)


@pytest.mark.parametrize("number", [0.1, -0.0, 5e-324, 1.7976931348623157e308, np.nan, np.inf, -np.inf, 2.0**53 + 2])
def test_what_was_served_comes_back_from_the_log_as_it_was(vector: PipelineVector, number: float) -> None:
    row = ([number, number, 1.0], "naïve \u2028 ü", [PRESENT, NULL | HEAD_EXCLUDED_BIT, PRESENT, PRESENT])
    assert not any(one.differs.any() for one in compared(vector, row, row).values())


def test_a_null_category_is_served_as_an_empty_one(vector: PipelineVector) -> None:
    served, recomputed = (HEALTHY[0], "", HEALTHY[2]), (HEALTHY[0], None, HEALTHY[2])
    assert not any(one.differs.any() for one in compared(vector, served, recomputed).values())


def test_the_last_bit_makes_a_difference(vector: PipelineVector) -> None:
    nearly = ([2.0, float(np.nextafter(1.0, 2.0)), 1.0], "u", HEALTHY[2])
    found = compared(vector, nearly, HEALTHY)
    assert [name for name, one in found.items() if one.differs.any()] == ["who.mean_1h"]
    assert found["who.mean_1h"].largest == np.nextafter(1.0, 2.0) - 1.0
    found = compared(vector, ([2.0, -0.0, 1.0], "u", HEALTHY[2]), ([2.0, 0.0, 1.0], "u", HEALTHY[2]))
    assert [name for name, one in found.items() if one.differs.any()] == ["who.mean_1h"]


def test_a_status_alone_makes_a_difference(vector: PipelineVector) -> None:
    for status in (NULL, PRESENT | HEAD_EXCLUDED_BIT):
        found = compared(vector, (HEALTHY[0], "u", [PRESENT, PRESENT, status, PRESENT]), HEALTHY)
        assert [name for name, one in found.items() if one.differs.any()] == ["who.last_1h"]
        assert found["who.last_1h"].recomputed.shown(0) == "u PRESENT"


def test_missing_and_extra_values_are_told_apart(vector: PipelineVector) -> None:
    gone = ([2.0, np.nan, 1.0], "", [PRESENT, NOT_FOUND, NOT_FOUND, PRESENT])
    for served, recomputed, missing in ((gone, HEALTHY, True), (HEALTHY, gone, False)):
        for one in (compared(vector, served, recomputed)[name] for name in ("who.mean_1h", "who.last_1h")):
            assert (bool(one.missing.any()), bool(one.extra.any())) == (missing, not missing)
            assert one.differs.all()
            assert one.largest == 0.0


def test_rows_of_another_schema_are_not_compared(vector: PipelineVector) -> None:
    text = served_json(serving.ServedFeatures(numbers=[1.0, 2.0, 3.0], categories=["u"], statuses=bytes([1] * 4)))
    assert row_of(vector, SCHEMA, text)
    for schema in (SCHEMA[1:], (("who.gone", False), *SCHEMA[1:]), (("who.mean_1h", True), *SCHEMA[1:])):
        assert row_of(vector, schema, text) is None
    for other in ('{"numbers":[1.0],"categories":[],"statuses":[1]}', "{}", ""):
        assert row_of(vector, SCHEMA, other) is None


def test_a_feature_that_the_version_is_not_given_is_not_compared(vector: PipelineVector) -> None:
    text = served_json(serving.ServedFeatures(numbers=[1.0], statuses=bytes([PRESENT])))
    row = row_of(vector, (("who.mean_1h", False),), text)
    assert row is not None
    found = list(differences(vector, served_of(vector, [row]), twin(vector, *HEALTHY)))
    assert [(one.name, one.compared) for one in found if one.compared] == [("who.mean_1h", 1)]
    assert not any(one.differs.any() or one.missing.any() or one.extra.any() for one in found)


def test_the_sample_is_a_matter_of_the_key_alone() -> None:
    keys = [f"flight-{number}" for number in range(20_000)]
    rows, left_out = chosen(keys, 1 / 16, 10_000)
    assert left_out == 0
    assert 1_100 < len(rows) < 1_400
    picked = {keys[row] for row in rows}
    backwards, _ = chosen(keys[::-1], 1 / 16, 10_000)
    assert {keys[::-1][row] for row in backwards} == picked
    assert chosen(keys, 1.0, 10**6)[0] == list(range(20_000))
    fewer, left_out = chosen(keys, 1 / 16, 100)
    assert {keys[row] for row in fewer} < picked
    assert (len(fewer), left_out) == (100, len(rows) - 100)


def test_a_period_is_measured_once_it_is_over() -> None:
    assert due(3 * DAY_US - 1, 0, DAY_US) == Period(DAY_US, 2 * DAY_US)
    assert due(3 * DAY_US, 3 * DAY_US, DAY_US) is None
    assert due(4 * DAY_US - 1, 3 * DAY_US, DAY_US) is None
    assert due(4 * DAY_US, 3 * DAY_US, DAY_US) == Period(3 * DAY_US, 4 * DAY_US)
    assert due(300 * DAY_US, 3 * DAY_US, DAY_US) == Period(293 * DAY_US, 300 * DAY_US)


def sample(rows: int = 1, **left_out: int) -> Sample:
    period = Period(15_860 * DAY_US, 15_861 * DAY_US)
    return Sample("risk", "sha256:0", period, 0.0625, ["p"] * rows, [15_860 * DAY_US] * rows, left_out)


def test_a_healthy_period_says_so_in_numbers_that_are_there(vector: PipelineVector) -> None:
    record = skew_record(sample(), list(compared(vector, HEALTHY, HEALTHY).values()), 0)
    sent = outgoing(record)
    value = json.loads(sent.value or b"")
    assert (value["compared"], value["differing"], value["rows"]) == (4, 0, 1)
    assert [(view.get("source", ""), view["compared"], view["share"]) for view in value["views"]] == [
        ("", 2, 0.0),
        ("who", 2, 0.0),
    ]
    assert value["summary"].startswith("risk: all 4 feature values of 1 sampled predictions from 2013-06-04T00:00:00Z")
    assert "examples" not in value
    assert from_headers(sent.headers).id == "risk/2013-06-04T00:00:00Z"


def test_skew_is_reported_with_the_worst_feature_and_an_example(vector: PipelineVector) -> None:
    broken = ([2.0, 4.5, 1.0], "u", HEALTHY[2])
    record = skew_record(sample(redefined=2), list(compared(vector, broken, HEALTHY).values()), 0)
    assert (record.compared, record.differing, dict(record.left_out)) == (4, 1, {"redefined": 2})
    (feature,) = [one for view in record.views for one in view.features if one.differing]
    assert (feature.feature, feature.share, feature.largest_difference) == ("who.mean_1h", 1.0, 3.5)
    (example,) = record.examples
    assert (example.prediction_id, example.served, example.recomputed) == ("p", "4.5 PRESENT", "1.0 PRESENT")
    assert "most of all who.mean_1h (100%); look at the rings of view payer" in record.summary


def test_examples_are_bounded_and_a_period_without_rows_says_why(vector: PipelineVector) -> None:
    upside = ([3.0, 4.5, 9.0], "v", [NULL] * 4)
    record = skew_record(sample(), list(compared(vector, upside, HEALTHY).values()) * 3, 0)
    assert len(record.examples) == EXAMPLES_MAX
    nothing = skew_record(sample(0, redefined=7), [], 0)
    assert "could be compared (7 redefined)" in nothing.summary
