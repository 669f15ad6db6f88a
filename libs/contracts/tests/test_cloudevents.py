"""CloudEvents in Kafka headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.cloudevents import Attributes, from_headers, identity, to_headers, watermark

TEXT = st.text(min_size=1, max_size=20)


@given(TEXT, TEXT, TEXT, st.none() | st.integers(0, 10**15), TEXT)
def test_attributes_survive_the_headers(id_: str, source: str, kind: str, time_us: int | None, subject: str) -> None:
    attributes = Attributes(id=id_, source=source, type=kind, time_us=time_us, subject=subject)
    assert from_headers(to_headers(attributes)) == attributes


def test_binary_mode_names_what_the_binding_requires() -> None:
    names = [name for name, _ in to_headers(Attributes(id="1", source="s", type="t", time_us=0))]
    assert names == ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type"]


def test_identity_is_source_and_id_else_the_place_in_the_log() -> None:
    named = Attributes(id="1", source="s", type="t", time_us=0)
    assert identity(named, "topic", 0, 7) == identity(named, "topic", 1, 9) == ("s", "1")
    nameless = Attributes(id="", source="s", type="t", time_us=0)
    assert identity(nameless, "topic", 0, 7) == ("topic", "0", "7")


def test_a_watermark_is_told_from_an_event() -> None:
    attributes = from_headers(watermark("clicks", 3_000_000))
    assert attributes.is_watermark
    assert attributes.time_us == 3_000_000
    assert not Attributes(id="1", source="s", type="tidemill.event.v1", time_us=0).is_watermark


@pytest.mark.parametrize(
    "header", [("ce_id", b"\xff"), ("ce_time", b"soon"), ("ce_time", b"2013-06-04T00:00:00")], ids=repr
)
def test_broken_headers_are_a_value_error(header: tuple[str, bytes]) -> None:
    with pytest.raises(ValueError):
        from_headers([header])
