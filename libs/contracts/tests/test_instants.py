"""Instants survive every form that they take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.instants import format_us, from_timestamp, parse_us, to_timestamp

# Years 1 to 9999, what RFC 3339 can write.
INSTANTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


@given(INSTANTS)
def test_text_round_trip_is_exact(instant_us: int) -> None:
    assert parse_us(format_us(instant_us)) == instant_us


@given(INSTANTS)
def test_timestamp_round_trip_is_exact(instant_us: int) -> None:
    assert from_timestamp(to_timestamp(instant_us)) == instant_us


def test_an_offset_is_honoured() -> None:
    assert parse_us("1970-01-01T01:00:00+01:00") == 0


@pytest.mark.parametrize("text", ["2013-06-04T00:00:00", "2013-06-04", "soon", ""])
def test_what_has_no_offset_or_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_us(text)
