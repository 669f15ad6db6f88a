"""Reads through gRPC and through Feast's HTTP door, from rings in the real Redis: values, shapes and refusals."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub, add_FeatureServiceServicer_to_server
from tidemill_feature.adapters.builds import Builds
from tidemill_feature.adapters.http import feast_app
from tidemill_feature.adapters.reads import Reads
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.rpc import BuildingServicer
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.registered import Definitions
from tidemill_feature.settings import Settings
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import Checkpoint, build_id, checkpoint_key
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running

pytestmark = pytest.mark.servers

NOTHING_FOLDED: Any = SimpleNamespace(views={}, streams={})
# 2013-06-04T12:00:00Z
NOON_US, MINUTE_US = 1_370_347_200_000_000, 60_000_000
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
_TIME, _BOOL = definition.FIELD_TYPE_TIMESTAMP, definition.FIELD_TYPE_BOOL
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=_STRING, nullable=True),
        definition.Field(name="amount", type=_FLOAT, nullable=True),
        definition.Field(name="items", type=_INT),
        definition.Field(name="card", type=_STRING),
        definition.Field(name="gift", type=_BOOL),
        definition.Field(name="at", type=_TIME),
    ],
    key_field="card",
    time_field="at",
    partitions=2,
    max_event_bytes=65_536,
)


def aggregation(name: str, function: str, expression: str = "", kind: Any = _INT) -> definition.Aggregation:
    number = definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}")
    return definition.Aggregation(name=name, function=number, window_ms=3_600_000, expression=expression, type=kind)


PAYER = definition.View(
    name="payer",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_HOP,
    features=[
        aggregation("payments", "COUNT"),
        aggregation("items", "SUM", "items"),
        aggregation("mean", "MEAN", "amount", _FLOAT),
        aggregation("most", "MAX", "amount", _FLOAT),
        aggregation("card", "LAST", "card", _STRING),
        aggregation("gift", "LAST", "gift", _BOOL),
        aggregation("latest", "MAX", "at", _TIME),
        aggregation("cards", "APPROX_DISTINCT", "card"),
    ],
)
BASKET = definition.View(
    name="basket",
    stream="paid",
    entity=["items", "at", "gift"],
    accuracy=definition.ACCURACY_HOP,
    features=[aggregation("payments", "COUNT")],
)
PIPELINE = definition.Pipeline(
    name="fraud",
    request="paid",
    features=[
        definition.FeatureSource(name="who", view=definition.ViewLookup(view="payer", on=["card"])),
        definition.FeatureSource(name="large", expression="amount > 100"),
    ],
)


def definitions() -> Definitions:
    found = Definitions()
    closure = definition.Definition(streams=[STREAM], views=[PAYER, BASKET], pipelines=[PIPELINE])
    found.fold(to_json(definition.DefinitionRecord(kind="pipeline", name="fraud", revision=1, definition=closure)))
    assert not found.faults
    return found


def rings(known: Definitions, project: str) -> dict[bytes, bytes]:
    """Ten payments of ann, one a minute before noon, amounts 1 to 10 with the last unknown; one old payment of bob."""
    at = np.array([NOON_US - (10 - n) * MINUTE_US for n in range(10)] + [NOON_US - 180 * MINUTE_US], np.int64)
    rows = len(at)
    nulls = np.zeros(rows, np.bool_)
    unknown = nulls.copy()
    unknown[9] = True
    columns = {
        "payer": Column(np.array(["ann"] * 10 + ["bob"], object), nulls),
        "amount": Column(np.arange(1.0, rows + 1), unknown),
        "items": Column(np.full(rows, 2), nulls),
        "card": Column(np.array([f"c{n}" for n in range(rows)], object), nulls),
        "gift": Column(np.arange(rows) % 2 == 1, nulls),
        "at": Column(at, nulls),
    }
    events = Events(np.arange(rows) % 2, np.arange(rows) // 2, at, columns)
    ends = {0: 6, 1: 5}
    stored: dict[bytes, bytes] = {}
    for plan in known.plans.values():
        shards = ViewShards(plan, project, 1_000)
        found = shards.find(events)
        shards.fold(events, shards.load(found, [None] * len(found.keys), lambda _: bytes(16)))
        stored |= dict(shards.dirty(ends))
    ids = frozenset(build_id(plan.hash) for plan in known.plans.values())
    for partition, end in ends.items():
        key = checkpoint_key(project, "feature-online", "events.paid", partition)
        stored[key] = Checkpoint(bytes(16), end, 0, NOON_US, ids).pack()
    return stored


@dataclass
class Door:
    """The service's doors."""

    stub: Any
    http: httpx.AsyncClient
    hashes: dict[str, str]
    known: Definitions

    async def get(self, *views: messages.ViewKeys, **options: Any) -> messages.GetFeaturesResponse:
        options = {"as_of_us": NOON_US, **options}
        found: messages.GetFeaturesResponse = await self.stub.GetFeatures(
            messages.GetFeaturesRequest(views=views, **options), timeout=5
        )
        return found

    async def feast(self, **body: Any) -> dict[str, Any]:
        response = await self.http.post("/get-online-features", json=body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


@pytest.fixture
async def door(servers: Any, redis_namespace: str) -> AsyncIterator[Door]:
    settings, health, known = Settings(project=redis_namespace), Health(), definitions()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis.from_url(servers.redis))
        stored = rings(known, redis_namespace)
        await redis.mset(stored)
        stack.push_async_callback(redis.delete, *stored)
        store = RedisStore(redis, redis_namespace, settings.group)
        reads = Reads(known, store, settings)
        rpc = GrpcServer(settings.grpc, health)
        builds = Builds(known, store, ViewBook(redis, redis_namespace, settings.group))
        rpc.add(add_FeatureServiceServicer_to_server, BuildingServicer(reads, NOTHING_FOLDED, builds))
        await stack.enter_async_context(running(rpc))
        web = HttpServer(settings.http, health, feast_app(reads, settings))
        await stack.enter_async_context(running(web))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}"))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{web.port}"))
        hashes = {name: plan.hash for name, plan in known.plans.items()}
        yield Door(FeatureServiceStub(channel), http, hashes, known)


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
    found = await door.stub.ExplainFeatures(request, timeout=5)
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
        found = await door.stub.ExplainFeatures(request, timeout=5)
        assert not found.shards
        assert not any(feature.slots for feature in found.features)
        assert {feature.value.status for feature in found.features} == {messages.STATUS_NOT_FOUND}


async def test_feast_answers_by_column_with_entities_first(door: Door) -> None:
    # Feast's door reads as of now: what was paid in 2013 has left every window.
    found = await door.feast(features=["payer:payments", "payer:card"], entities={"payer": ["ann", "eve", None]})
    assert found["metadata"]["feature_names"] == ["payer", "payments", "card"]
    payer, payments, card = found["results"]
    assert payer == {
        "values": ["ann", "eve", None],
        "statuses": ["PRESENT", "PRESENT", "NULL_VALUE"],
        "event_timestamps": ["1970-01-01T00:00:00Z"] * 3,
    }
    assert payments["statuses"] == card["statuses"] == ["OUTSIDE_MAX_AGE", "NOT_FOUND", "NOT_FOUND"]
    assert payments["values"] == [0, None, None]


async def test_feast_full_names_and_a_pipeline_as_a_feature_service(door: Door) -> None:
    found = await door.feast(feature_service="fraud", entities={"card": ["ann"]}, full_feature_names=True)
    names = found["metadata"]["feature_names"]
    assert names[:2] == ["card", "who__payments"]
    assert len(names) == len(found["results"]) == 1 + len(PAYER.features)


BAD_BODIES: list[tuple[dict[str, Any], int, str]] = [
    ({"features": ["payer:payments"], "entities": {"payer": [7]}}, 400, "wrong_type"),
    ({"features": ["payer:payments"], "entities": {"payer": ["x" * 1_000_000]}}, 413, "oversized"),
    ({"features": ["payer:payments"], "entities": {"payer": [{}]}}, 400, "wrong_type"),
    ({"features": ["payer:payments"], "entities": {"payer": "ann"}}, 400, "wrong_type"),
    ({"features": ["payer:payments"], "entities": {"driver": [1]}}, 404, "unknown_entity"),
    ({"features": ["payer:payments"], "entities": {}}, 400, "missing_field"),
    ({"features": ["payer:payments"]}, 400, "missing_field"),
    ({"features": ["nobody:payments"], "entities": {"payer": ["ann"]}}, 404, "unknown_view"),
    ({"features": ["payer@v2:payments"], "entities": {"payer": ["ann"]}}, 404, "unknown_version"),
    ({"features": ["payer:nothing"], "entities": {"payer": ["ann"]}}, 400, "unknown_field"),
    ({"features": ["payments"], "entities": {"payer": ["ann"]}}, 400, "undecodable"),
    ({"features": [], "entities": {"payer": ["ann"]}}, 400, "empty"),
    ({"feature_service": "nobody", "entities": {"payer": ["ann"]}}, 404, "unknown_pipeline"),
    ({"feature_service": "fraud", "features": ["payer:items"], "entities": {}}, 409, "conflict"),
    ({"features": ["payer:card", "payer:card"], "entities": {"payer": ["ann"]}}, 409, "conflict"),
    ({"features": ["payer:items"], "entities": {"payer": ["ann"]}, "more": 1}, 400, "unknown_field"),
    ({"features": ["payer:items"], "entities": {"payer": ["ann"] * 10_001}}, 400, "out_of_range"),
    *(
        ({"features": ["basket:payments"], "entities": {**whole, **changed}}, 400, reason)
        for whole in ({"items": [2], "at": ["2013-06-04T12:00:00Z"], "gift": [True]},)
        for changed, reason in (
            ({"items": [2**63]}, "out_of_range"),
            ({"items": [True]}, "wrong_type"),
            ({"items": [1, 2]}, "missing_field"),
            ({"at": ["2013-06-04T12:00:00"]}, "naive_timestamp"),
            ({"at": ["noon"]}, "wrong_type"),
            ({"at": ["1492-10-12T00:00:00Z"]}, "out_of_range"),
            ({"at": [1_370_347_200]}, "wrong_type"),
            ({"gift": [1]}, "wrong_type"),
        )
    ),
]
BAD_BYTES: list[tuple[bytes, int, str]] = [
    (b"", 400, "empty"),
    (b'{"features": [', 400, "undecodable"),
    (b'{"features": ["payer:items"], "entities": {"payer": ["\\ud800"]}}', 400, "bad_utf8"),
    (b'{"features": ["payer:items"], "entities": {"\\ud800": ["a"]}}', 400, "bad_utf8"),
    (b'{"features": ["payer:items"], "entities": {"payer": ["\xff"]}}', 400, "bad_utf8"),
    ('{"features": ["payer:items"], "entities": {"payer": ["a"]}}'.encode("utf-16-le"), 400, "bad_utf8"),
    (b'{"features": ["payer:items"], "entities": {"payer": [NaN]}}', 400, "non_finite"),
    (b'{"features": ["payer:items"], "entities": {"payer": [-Infinity]}}', 400, "non_finite"),
    (b" " * (4 * 1024 * 1024 + 1), 413, "oversized"),
]


async def test_what_feast_s_door_refuses_has_one_named_reason(door: Door) -> None:
    for body, status, reason in BAD_BODIES:
        response = await door.http.post("/get-online-features", json=body)
        assert (response.status_code, response.json().get("reason")) == (status, reason), (body, response.text)
        assert response.headers["content-type"] == "application/problem+json"
    for raw, status, reason in BAD_BYTES:
        response = await door.http.post(
            "/get-online-features", content=raw, headers={"content-type": "application/json"}
        )
        assert (response.status_code, response.json().get("reason")) == (status, reason), (raw[:80], response.text)
