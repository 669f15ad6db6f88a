"""Rows of a file become requests; what cannot be one is not asked with, and says why as serving would."""

from collections.abc import Sequence

import pytest
from tidemill.cli.requests import entries_of
from tidemill.cli.rows import Row
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.serving.v1 import serving_pb2

SCHEMA = {
    "shop": definition.Field(name="shop", type=definition.FIELD_TYPE_STRING),
    "amount": definition.Field(name="amount", type=definition.FIELD_TYPE_FLOAT64),
    "seats": definition.Field(name="seats", type=definition.FIELD_TYPE_INT64),
    "at": definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
}


class Asked:
    """Answers every request with the shop for its id."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, rows: Sequence[serving_pb2.PredictRow]) -> list[serving_pb2.RowResult]:
        self.calls.append([row.fields["shop"].string_value for row in rows])
        predictions = [serving_pb2.Prediction(prediction_id=shop, probability=0.5) for shop in self.calls[-1]]
        return [serving_pb2.RowResult(prediction=prediction) for prediction in predictions]


def rows(*texts: bytes) -> list[Row]:
    return [Row(number, text, 0) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("data", "reason", "field", "message"),
    [
        (b'{"shop": ["bistro", "x"]}', "wrong_type", "shop", "field 'shop' is a string, not a list"),
        (b'{"shop": {"name": "x"}}', "wrong_type", "shop", "field 'shop' is a string, not an object"),
        (b'{"shop": 9223372036854775808}', "wrong_type", "shop", "field 'shop' is a string, not an integer"),
        (b'{"other": []}', "wrong_type", "other", "field 'other' is a single value, not a list"),
        (b'{"seats": 9223372036854775808}', "out_of_range", "seats", "the integer does not fit into 64 bits"),
        (b'{"amount": ' + b"9" * 400 + b"}", "non_finite", "amount", "no 64-bit float is so large"),
        (rb'{"shop": "\ud800"}', "bad_utf8", "shop", "half of a surrogate pair"),
        (rb'{"at": "\ud800"}', "bad_utf8", "at", "half of a surrogate pair"),
        (rb'{"\ud800": 1}', "bad_utf8", r"\ud800", "half of a surrogate pair"),
        (b'{"shop": "\xff"}', "bad_utf8", "", "byte 10 of the row is not UTF-8"),
        (b'{"shop": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "undecodable", "", "nested too deeply"),
        (b'{"shop": ', "undecodable", "", "no JSON: "),
        (b"[]", "undecodable", "", "one JSON object"),
    ],
)
def test_a_row_that_cannot_be_a_request_is_not_sent_and_has_its_reason(
    data: bytes, reason: str, field: str, message: str
) -> None:
    asked = Asked()
    (entry,) = entries_of(rows(data), SCHEMA, asked)
    assert (entry["row"], entry["reason"], entry["field"]) == (1, reason, field)
    assert message in entry["message"]
    assert asked.calls == []


def test_the_rows_around_one_that_cannot_be_sent_are_answered_in_order() -> None:
    asked = Asked()
    entries = list(entries_of(rows(b'{"shop": "a"}', b"{", b'{"shop": "c"}'), SCHEMA, asked))
    assert asked.calls == [["a", "c"]]
    assert [entry.get("prediction_id") for entry in entries] == ["a", None, "c"]
    assert [entry["row"] for entry in entries] == [1, 2, 3]
