"""The Python client of feature reads, with and without asyncio, and the examples of docs/reads.md."""

import asyncio
import math
import re
import socket
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tidemill.clients.calls import AsyncConnection, CallError, Connection
from tidemill.clients.errors import ClientError
from tidemill.clients.feature_table import FeatureTable, Status
from tidemill.clients.features import AsyncFeatureClient, FeatureClient

pytestmark = pytest.mark.servers

NOON = datetime(2013, 6, 4, 12, tzinfo=UTC)
PAGE = Path(__file__).parents[2] / "docs/reads.md"
# Nobody listens on a reserved port of the loopback.
NOWHERE = "127.0.0.1:1"


async def both(address: str, *asked: Any, **options: Any) -> FeatureTable:
    """Return what both forms of the client say, which must be the same."""

    def plain() -> FeatureTable:
        with Connection("feature", address) as connection:
            return FeatureClient(connection).get_features(*asked, **options)

    async with AsyncConnection("feature", address) as connection:
        found = await AsyncFeatureClient(connection).get_features(*asked, **options)
    assert await asyncio.to_thread(plain) == found
    return found


async def refusal(address: str, *asked: Any, **options: Any) -> str:
    with pytest.raises(ClientError) as caught:
        await both(address, *asked, **options)
    return caught.value.reason


async def test_a_table_has_a_column_per_feature_and_a_row_per_key(doors: Any) -> None:
    table = await both(doors.grpc, "origin", ["JFK", "nowhere", None, "JFK"], NOON)
    assert (table.view, table.as_of, len(table.view_hash)) == ("origin", NOON, len("sha256:") + 64)
    assert list(table) == ["departures_2h", "mean_delay_2h", "worst_delay_2h", "mean_delay_6h"]
    departures = table["departures_2h"]
    assert departures.statuses == [Status.PRESENT, Status.NOT_FOUND, Status.NOT_FOUND, Status.PRESENT]
    assert isinstance(departures.values[0], int)
    assert departures.values[1:3] == [None, None]
    first, missing = departures.ages[:2]
    assert first is not None
    assert timedelta(0) <= first < timedelta(hours=2)
    assert missing is None
    rows = list(table.rows())
    assert rows[0] == rows[3]
    assert isinstance(rows[0]["mean_delay_2h"], float)
    assert table.head_excluded == [False] * 4


async def test_a_key_of_several_fields_is_a_tuple(doors: Any) -> None:
    table = await both(doors.grpc, "route", [("JFK", "BOS"), ["LGA", "ORD"]], NOON)
    assert len(table["arrivals_6h"].values) == 2


async def test_a_version_is_pinned_by_its_hash(doors: Any) -> None:
    table = await both(doors.grpc, "origin", ["JFK"], NOON)
    assert (await both(doors.grpc, "origin", ["JFK"], NOON, version=table.view_hash)).view_hash == table.view_hash
    assert await refusal(doors.grpc, "origin", ["JFK"], NOON, version="0" * 64) == "unknown_version"


BAD: list[tuple[list[Any], datetime | None, str]] = [
    ([7], NOON, "wrong_type"),
    ([2**63], NOON, "out_of_range"),
    ([7.5], NOON, "wrong_type"),
    ([math.nan], NOON, "non_finite"),
    ([math.inf], NOON, "non_finite"),
    (["x" * 1_000_000], NOON, "oversized"),
    (["\ud800"], NOON, "bad_utf8"),
    ([("JFK", "LAX")], NOON, "missing_field"),
    ([datetime(2013, 6, 4)], NOON, "naive_timestamp"),  # noqa: DTZ001 -- what is tested
    (["JFK"], datetime(2013, 6, 4), "naive_timestamp"),  # noqa: DTZ001
    (["JFK"], datetime(1066, 1, 1, tzinfo=UTC), "out_of_range"),
    ([b"JFK"], NOON, "wrong_type"),
]


@pytest.mark.parametrize(("keys", "as_of", "reason"), BAD, ids=range(len(BAD)))
async def test_a_bad_key_has_one_named_reason(doors: Any, keys: list[Any], as_of: Any, reason: str) -> None:
    assert await refusal(doors.grpc, "origin", keys, as_of) == reason


async def test_an_unknown_view_is_named_and_the_empty_string_is_not_found(doors: Any) -> None:
    assert await refusal(doors.grpc, "nothing", ["JFK"], NOON) == "unknown_view"
    assert (await both(doors.grpc, "origin", [""], NOON))["mean_delay_2h"].statuses == [Status.NOT_FOUND]


async def test_a_read_waits_for_a_service_that_starts(service: Any) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
    async with AsyncExitStack() as stack, AsyncConnection("feature", address) as connection:
        client = AsyncFeatureClient(connection)
        asked = asyncio.create_task(client.get_features("origin", ["JFK"], NOON))
        # The first attempt has found nobody before the service listens.
        with pytest.raises(CallError):
            await client.get_features("origin", ["JFK"], NOON, deadline_s=0.02)
        await service.open(stack, address)
        assert (await asked)["departures_2h"].statuses == [Status.PRESENT]


async def test_nobody_there_is_said_within_the_deadline() -> None:
    async with AsyncConnection("feature", NOWHERE) as connection:
        with pytest.raises(CallError) as caught:
            async with asyncio.timeout(10):
                await AsyncFeatureClient(connection).get_features("origin", ["JFK"], deadline_s=2)
    assert not caught.value.reached


async def test_the_examples_of_the_page_run(doors: Any) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        ready = example.replace("127.0.0.1:7002", doors.grpc)
        await asyncio.to_thread(exec, compile(ready, str(PAGE), "exec"), {"__name__": "__main__"})


async def test_the_question_to_feast_s_door_on_the_page_is_answered(doors: Any) -> None:
    (body,) = re.findall(r"-d '(\{.*?\})'", PAGE.read_text(), re.DOTALL)
    async with httpx.AsyncClient(timeout=60) as client:
        response = await client.post(
            f"{doors.http}/get-online-features", content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["metadata"]["feature_names"] == ["origin", "departures_2h", "mean_delay_2h"]
    assert [len(vector["values"]) for vector in found["results"]] == [2, 2, 2]
