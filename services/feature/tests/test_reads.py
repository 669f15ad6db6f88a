"""Reads through gRPC, from rings in the real Redis: values, shapes and refusals."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_feature.adapters.builds import Builds
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_features.layout import Checkpoint
from tidemill_runtime.positions import Partition
from tidemill_testkit.fraud_world import MINUTE_US, NOON_US, PAYER, STREAM

# conftest's Door; test modules cannot import it under importlib mode.
Door = Any

pytestmark = pytest.mark.servers

_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
_TIME, _BOOL = definition.FIELD_TYPE_TIMESTAMP, definition.FIELD_TYPE_BOOL


def keys(view: str, *values: Any, **options: Any) -> messages.ViewKeys:
    """One-field keys."""
    return messages.ViewKeys(view=view, keys=[key(value) for value in values], **options)


def key(*values: Any) -> messages.EntityKey:
    kinds = {str: "string_value", int: "int64_value", float: "float64_value", bool: "bool_value"}
    return messages.EntityKey(
        values=[messages.Scalar(**({} if one is None else {kinds[type(one)]: one})) for one in values]
    )


async def reason_of(door: Door, *views: messages.ViewKeys, **options: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.get(*views, **options)
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    status.ParseFromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    for detail in status.details:
        detail.Unpack(info)
    return str(info.reason).lower()


async def test_columns_say_what_rows_say(door: Door) -> None:
    asked = [keys("payer", "ann", "bob", "eve", None, "ann")]
    by_row = (await door.get(*asked)).views[0]
    response = await door.get(*asked, columnar=True)
    (by_column,) = response.columns
    assert not response.views
    assert (by_column.view, by_column.view_hash, by_column.rows) == (by_row.view, by_row.view_hash, 5)
    assert [column.feature for column in by_column.features] == list(by_row.features)
    lists = {_FLOAT: "float64_values", _INT: "int64_values", _TIME: "int64_values"}
    lists |= {_STRING: "string_values", _BOOL: "bool_values"}
    for place, column in enumerate(by_column.features):
        values, nulls = getattr(column, lists[column.type]), column.nulls or bytes(5)
        for row in range(5):
            cell = by_row.rows[row].values[place]
            which = cell.value.WhichOneof("value")
            assert (which is None) == bool(nulls[row])
            if which is not None:
                assert getattr(cell.value, which) == values[row]
            assert cell.status == column.statuses[row]
            assert cell.event_time_us == column.event_times_us[row]
    assert math.isnan(by_column.features[2].float64_values[2])


async def test_more_reads_at_once_than_there_are_connections_are_all_answered(door: Door) -> None:
    answers = await asyncio.gather(*(door.get(keys("payer", "ann"), columnar=True) for _ in range(200)))
    assert {answer.columns[0].features[0].int64_values[0] for answer in answers} == {10}


async def test_a_bucket_left_out_is_marked_in_columns_too(door: Door) -> None:
    past = NOON_US - 5 * MINUTE_US
    by_row = (await door.get(keys("payer", "ann", "eve"), as_of_us=past)).views[0]
    (by_column,) = (await door.get(keys("payer", "ann", "eve"), as_of_us=past, columnar=True)).columns
    assert [row.values[0].head_excluded for row in by_row.rows] == [True, False]
    assert by_column.head_excluded == b"\1\0"


async def test_a_version_is_read_by_its_hash_or_its_first_digits(door: Door) -> None:
    whole = door.hashes["payer"]
    for wanted in (whole, whole.removeprefix("sha256:")[:8]):
        assert (await door.get(keys("payer", "ann", view_hash=wanted))).views[0].view_hash == whole
    for unknown in ("sha256:" + "0" * 64, whole[:10], "latest"):
        assert await reason_of(door, keys("payer", "ann", view_hash=unknown)) == "unknown_version"


async def test_a_version_that_was_defined_anew_or_retired_is_refused_by_name(door: Door) -> None:
    changed = definition.View.FromString(PAYER.SerializeToString())
    changed.features[0].window_ms *= 2
    closure = definition.Definition(streams=[STREAM], views=[changed])
    record = definition.DefinitionRecord(kind="view", name="payer", revision=2, definition=closure)
    door.known.fold(to_json(record))
    old, new = door.hashes["payer"], door.known.plans["payer"].hash
    assert new != old
    with pytest.raises(grpc.aio.AioRpcError, match=f"not registered in version '{old}'"):
        await door.get(keys("payer", "ann", view_hash=old))
    assert await reason_of(door, keys("payer", "ann", view_hash=old)) == "unknown_version"
    # Its rings are not there yet; the old ones never stand in for them.
    assert await reason_of(door, keys("payer", "ann", view_hash=new)) == "unavailable"
    record.revision, record.retired = 3, True
    door.known.fold(to_json(record))
    for version in (old, new, ""):
        assert await reason_of(door, keys("payer", "ann", view_hash=version)) == "unknown_view"


async def test_a_view_that_is_retired_while_a_read_waits_for_positions_is_refused_by_name(door: Door) -> None:
    never = [progress.TopicPartitionOffset(topic="events.paid", partition=0, next_offset=10**9)]
    waiting = asyncio.create_task(reason_of(door, keys("payer", "ann"), include=never))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    record = definition.DefinitionRecord(kind="view", name="payer", revision=2, retired=True)
    door.known.fold(to_json(record))
    assert await waiting == "unknown_view"


async def test_builds_of_a_view_that_is_retired_meanwhile_are_told_as_they_were(
    door: Door, servers: Any, redis_namespace: str
) -> None:
    class Retiring(RedisStore):
        """Meets what happens between a question and its answer."""

        async def checkpoints(self, partitions: Sequence[Partition]) -> dict[Partition, Checkpoint | None]:
            door.known.fold(to_json(definition.DefinitionRecord(kind="view", name="payer", revision=2, retired=True)))
            return await super().checkpoints(partitions)

    async with Redis.from_url(servers.redis) as redis:
        book = ViewBook(redis, redis_namespace, "feature-online")
        builds = Builds(door.known, Retiring(redis, redis_namespace, "feature-online"), book)
        found = await builds.builds(messages.GetBuildsRequest())
    assert ("payer", door.hashes["payer"], False) in [(one.view, one.view_hash, one.old) for one in found.views]
    assert "payer" not in door.known.plans


async def test_a_version_of_another_entity_answers_for_none_that_is_being_built(door: Door) -> None:
    assert (await door.get(keys("payer", "ann"))).views[0].rows[0].values[0].value.int64_value == 10
    changed = definition.View.FromString(PAYER.SerializeToString())
    changed.entity[:] = ["card"]
    door.redefine(changed)
    # A card of that name is no payer.
    assert await reason_of(door, keys("payer", "ann")) == "unavailable"
    with pytest.raises(grpc.aio.AioRpcError, match="still being built"):
        await door.stub.ExplainFeatures(messages.ExplainFeaturesRequest(view="payer", key=key("ann")))


async def test_a_window_that_begins_before_what_is_kept_is_marked_in_rows_and_columns(
    door: Door,
) -> None:
    long_ago = NOON_US - 180 * MINUTE_US
    (row,) = (await door.get(keys("payer", "ann"), as_of_us=long_ago)).views[0].rows
    (columns,) = (await door.get(keys("payer", "ann"), as_of_us=long_ago, columnar=True)).columns
    assert {cell.status for cell in row.values} == {messages.STATUS_BEYOND_KEPT}
    assert {cell.value.WhichOneof("value") for cell in row.values} == {None}
    assert {column.statuses for column in columns.features} == {bytes([messages.STATUS_BEYOND_KEPT])}
    assert {column.nulls for column in columns.features} == {b"\1"}
    # Of bob's one payment nothing gave way.
    assert (await door.get(keys("payer", "bob"), as_of_us=long_ago)).views[0].rows[0].values[0].value.int64_value == 1


async def test_an_unknown_entity_is_answered_and_the_empty_string_is_an_entity(door: Door) -> None:
    for unknown in ("eve", "", "x" * 65_536, "a\0b", None):
        (row,) = (await door.get(keys("payer", unknown))).views[0].rows
        assert {value.status for value in row.values} == {messages.STATUS_NOT_FOUND}
        assert {value.value.WhichOneof("value") for value in row.values} == {None}


BASKET_KEY = (messages.Scalar(int64_value=2), messages.Scalar(timestamp_us=NOON_US), messages.Scalar(bool_value=True))
BAD: list[tuple[messages.ViewKeys, str]] = [
    (keys("nobody", "ann"), "unknown_view"),
    (keys("x" * 1_000_000, "ann"), "unknown_view"),
    (keys("payer", 7), "wrong_type"),
    (keys("payer", 7.5), "wrong_type"),
    (keys("payer", math.nan), "non_finite"),
    (keys("payer", math.inf), "non_finite"),
    (keys("payer", -math.inf), "non_finite"),
    (keys("payer", "x" * 1_000_000), "oversized"),
    (messages.ViewKeys(view="payer", keys=[key("ann", "bob")]), "missing_field"),
    (messages.ViewKeys(view="payer", keys=[key()]), "missing_field"),
    (keys("payer", *["ann"] * 10_001), "out_of_range"),
    *(
        (messages.ViewKeys(view="basket", keys=[messages.EntityKey(values=changed)]), reason)
        for changed, reason in (
            ((messages.Scalar(float64_value=2.0**63), *BASKET_KEY[1:]), "wrong_type"),
            ((BASKET_KEY[0], messages.Scalar(timestamp_us=2**63 - 1), BASKET_KEY[2]), "out_of_range"),
            ((BASKET_KEY[0], messages.Scalar(string_value="2013-06-04T12:00:00"), BASKET_KEY[2]), "wrong_type"),
            ((*BASKET_KEY[:2], messages.Scalar(int64_value=1)), "wrong_type"),
        )
    ),
]


@pytest.mark.parametrize(("asked", "reason"), BAD, ids=range(len(BAD)))
async def test_a_bad_read_has_one_named_reason(door: Door, asked: messages.ViewKeys, reason: str) -> None:
    assert await reason_of(door, asked) == reason


@pytest.mark.parametrize("as_of_us", [-(2**63), 2**63 - 1, 10**17])
async def test_a_moment_that_no_event_can_have_is_out_of_range(door: Door, as_of_us: int) -> None:
    assert await reason_of(door, keys("payer", "ann"), as_of_us=as_of_us) == "out_of_range"


async def test_the_slots_of_an_explanation_make_its_values(door: Door) -> None:
    request = messages.ExplainFeaturesRequest(view="payer", key=key("ann"), as_of_us=NOON_US)
    found = await door.stub.ExplainFeatures(request, timeout=60)
    features = {feature.feature: feature for feature in found.features}
    values = {feature.feature: feature.value for feature in found.features}
    row = (await door.get(keys("payer", "ann"))).views[0].rows[0]
    assert list(row.values) == [feature.value for feature in found.features]
    counts = [slot.partials[0].value.int64_value for slot in features["payments"].slots]
    assert sum(counts) == values["payments"].value.int64_value == 10
    partials = [{part.name: part.value for part in slot.partials} for slot in features["mean"].slots]
    count = sum(part["count(amount)"].int64_value for part in partials)
    assert sum(part["sum(amount)"].float64_value for part in partials) / count == values["mean"].value.float64_value
    assert values["cards"].value.int64_value == 10
    assert all(part.bytes > 0 for slot in features["cards"].slots for part in slot.partials if "distinct" in part.name)
    cards = [slot.partials[0] for slot in features["card"].slots]
    assert max(cards, key=lambda part: part.event_time_us).value.string_value == values["card"].value.string_value
    assert [(shard.partition, shard.next_offset) for shard in found.shards] == [(0, 6), (1, 5)]
    for feature in found.features:
        assert all(feature.from_us <= slot.from_us < slot.to_us <= feature.to_us for slot in feature.slots)


async def test_an_entity_without_events_is_explained_by_no_slots(door: Door) -> None:
    for nobody in ("eve", None):
        request = messages.ExplainFeaturesRequest(view="payer", key=key(nobody), as_of_us=NOON_US)
        found = await door.stub.ExplainFeatures(request, timeout=60)
        assert not found.shards
        assert not any(feature.slots for feature in found.features)
        assert {feature.value.status for feature in found.features} == {messages.STATUS_NOT_FOUND}
