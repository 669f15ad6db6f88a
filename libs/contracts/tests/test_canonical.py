"""Canonical JSON and the hashes that name definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.canonical import from_json, message_hash, stream_hash, to_json, view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition


def stream(name: str = "clicks") -> definition.Stream:
    return definition.Stream(
        name=name,
        fields=[definition.Field(name="id", type=definition.FIELD_TYPE_STRING)],
        key_field="id",
        time_field="at",
        partitions=2,
    )


def view() -> definition.View:
    return definition.View(name="user", stream="clicks", entity=["id"])


@given(st.text(min_size=1), st.integers(0, 2**62), st.booleans())
def test_json_round_trip_keeps_every_field(name: str, wait_ms: int, nullable: bool) -> None:
    message = definition.Definition(
        streams=[definition.Stream(name=name, lateness_ms=wait_ms, fields=[definition.Field(nullable=nullable)])]
    )
    assert from_json(to_json(message), definition.Definition()) == message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"1", b"\xff", b'{"streams": 1}', b"[" * 100_000])
def test_what_is_not_the_message_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        from_json(raw, definition.Definition())


def test_fields_of_a_newer_version_are_ignored() -> None:
    raw = b'{"kind": "stream", "name": "clicks", "invented_later": {"x": 1}}'
    assert from_json(raw, definition.DefinitionRecord()).name == "clicks"


def test_a_hash_depends_on_content_alone() -> None:
    assert message_hash(stream()) == message_hash(definition.Stream.FromString(stream().SerializeToString()))
    assert stream_hash(stream()).startswith("sha256:")
    assert stream_hash(stream()) != stream_hash(stream("other"))


def test_a_views_hash_changes_with_its_stream() -> None:
    changed = stream()
    changed.lateness_ms = 1
    assert view_hash(view(), stream()) != view_hash(view(), changed)


def test_a_field_that_a_view_does_not_read_may_come_and_go_without_its_name_changing() -> None:
    where = """Gate = 'north' AND "dep-delay" > "राशि" """
    one = definition.Aggregation(name="n", expression="minutes > 15", where=where)
    reading = definition.View(name="busy", stream="rides", entity=["town"], features=[one])
    names = ("ride_id", "at", "town", "minutes", "Gate", "राशि", "dep-delay")
    rides = definition.Stream(name="rides", key_field="ride_id", time_field="at")
    rides.fields.extend(definition.Field(name=name, type=definition.FIELD_TYPE_INT64) for name in names)
    wider = definition.Stream()
    wider.CopyFrom(rides)
    for name in ("tip", "arr-delay"):
        wider.fields.append(definition.Field(name=name, type=definition.FIELD_TYPE_FLOAT64, nullable=True))
    assert view_hash(reading, wider) == view_hash(reading, rides)
    for index, name in enumerate(names):
        changed = definition.Stream()
        changed.CopyFrom(rides)
        changed.fields[index].nullable = True
        assert view_hash(reading, changed) != view_hash(reading, rides), name


def test_a_views_budget_leaves_its_rings_their_name() -> None:
    larger = view()
    larger.budget_bytes = 1_000_000
    assert view_hash(larger, stream()) == view_hash(view(), stream())
