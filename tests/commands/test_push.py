"""Pushing large files, and streams that are paused, from the command line, on the real servers."""

import asyncio
import json
import signal
from collections import Counter
from typing import Any

import pytest
from tidemill.clients.calls import AsyncConnection
from tidemill.clients.ingestion import AsyncIngestionClient
from tidemill_contracts.cloudevents import from_headers
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

METERS = '''
"""Meters."""
from datetime import datetime
import tidemill as tm

class Reading(tm.Event, stream="readings", key="meter", time="at", partitions=2):
    meter: str
    number: int
    at: datetime
'''


def reading(number: int, at: str = "2013-06-04T10:00:00Z") -> bytes:
    return json.dumps({"meter": f"m-{number % 50}", "number": number, "at": at}).encode()


async def test_a_push_goes_on_through_kill_9_of_ingestion_and_nothing_is_lost_or_new(desk: Any) -> None:
    count = 60_000
    file = desk.folder / "readings.ndjson"
    file.write_bytes(b"\n".join(map(reading, range(count))))
    await desk.ingestion.start()
    await desk.run("apply", desk.write("meters.py", METERS))
    pushing = await desk.begin("push", "readings", file, "--json")

    async def under_way() -> bool:
        ends: list[int] = await desk.ends("events.readings")
        return sum(ends) > 3_000

    for _ in range(2):
        await aeventually(under_way, claim="events arrive")
        assert pushing.returncode is None, "it is still pushing"
        await desk.ingestion.stop(signal.SIGKILL)
        await desk.ingestion.start()
    done = await desk.done(pushing)
    assert done.code == 0, done
    assert (done.json["rows"], done.json["refused"]) == (count, {})
    log = await desk.log("events.readings")
    assert {json.loads(record.value)["number"] for record in log} == set(range(count))
    # What was written and not answered came twice, under one identity: readers apply it once.
    assert len({from_headers(record.headers).id for record in log}) == count
    assert done.json["accepted"] + done.json["duplicates"] == count
    assert len(log) < count + 2 * 4_250, "at most what had no verdict came twice"


async def test_every_refusal_of_a_push_is_listed_where_that_is_asked_for(desk: Any) -> None:
    await desk.ingestion.start()
    await desk.run("apply", desk.write("meters.py", METERS))
    file, listed = desk.folder / "readings.ndjson", desk.folder / "refused.ndjson"
    bad = set(range(0, 1_000, 25))
    rows = (reading(number, at="noon") if number in bad else reading(number) for number in range(1_000))
    file.write_bytes(b"\n".join(rows))
    done = await desk.run("push", "readings", file, "--refused", listed, "--json")
    assert (done.code, done.json["refused"], len(done.json["examples"])) == (1, {"wrong_type": len(bad)}, 10)
    found = [json.loads(line) for line in listed.read_bytes().splitlines()]
    assert {one["row"] - 1 for one in found} == bad
    assert found[:10] == done.json["examples"]
    done = await desk.run("push", "readings", file)
    assert f"and {len(bad) - 10} more; --refused FILE lists them all" in done.out
    done = await desk.run("push", "readings", file, "--refused", desk.folder / "nowhere" / "x")
    assert (done.code, "--refused: " in done.err) == (2, True)


async def test_a_program_is_told_a_verdict_for_each_event_and_holds_only_so_many(desk: Any) -> None:
    await desk.ingestion.start()
    await desk.run("apply", desk.write("meters.py", METERS))
    told: dict[int, str] = {}
    async with AsyncConnection("ingestion", desk.ingestion.address) as connection:
        client = AsyncIngestionClient(connection)
        async with client.stream("readings", "test", lambda number, one: told.update({number: one.reason})) as events:
            for start in range(0, 6_000, 1_000):
                await events.send([ingestion.Event(data=reading(number)) for number in range(start, start + 1_000)])
                assert start + 1_000 - len(told) <= 5_000
            await desk.ingestion.stop(signal.SIGKILL)
            restarting = asyncio.create_task(desk.ingestion.start())
            await events.send([ingestion.Event(data=b"{"), ingestion.Event(data=reading(6_000))])
        await restarting
    assert sorted(told) == list(range(6_002))
    assert Counter(reason for reason in told.values() if reason != "duplicate") == {"": 6_001, "undecodable": 1}
    numbers = Counter(json.loads(record.value)["number"] for record in await desk.log("events.readings"))
    assert sorted(numbers) == list(range(6_001))


async def test_a_paused_stream_is_listed_with_its_reason_and_resumed_by_name(desk: Any) -> None:
    await desk.ingestion.start(BAD_MIN_EVENTS=10, PAUSE_S=600)
    await desk.run("apply", desk.write("meters.py", METERS))
    bad = desk.write("bad.ndjson", "\n".join(f'{{"meter": "m", "number": {number}}}' for number in range(20)))
    pushed = await desk.run("push", "readings", bad, "--json", "--batch", 20)
    assert (pushed.code, pushed.json["refused"]) == (1, {"missing_field": 20})
    (found,) = (await desk.run("streams", "list", "--paused", "--json")).json["streams"]
    assert (found["stream"], found["state"], found["partitions"]) == ("readings", "paused", 2)
    assert (found["mostly"], found["refused"], found["limit"]) == ("missing_field", 20, 0.5)
    assert found["since"] < found["resumes_at"]
    good = desk.folder / "good.ndjson"
    good.write_bytes(reading(1))
    waiting = await desk.begin("push", "readings", good, "--json")
    resumed = await desk.run("streams", "resume", "readings", "--why", "the meters are mended", "--json")
    assert (resumed.code, resumed.json["resumed"], resumed.json["state"]) == (0, True, "open")
    assert (await desk.done(waiting)).json["accepted"] == 1, "who was told to wait goes on by itself"
    assert "was not paused" in (await desk.run("streams", "resume", "readings", "--why", "again")).out
    assert (await desk.run("streams", "list", "--paused")).out == "no stream is paused\n"
    unknown = await desk.run("streams", "resume", "nobody", "--why", "x", "--json")
    assert (unknown.code, unknown.json["reason"]) == (1, "unknown_stream")

    async def told() -> bool:
        records = [json.loads(record.value) for record in await desk.log("ingestion.quality.v1")]
        ends = [record["pause"] for record in records if record["kind"] == "resumed"]
        return [(one["actor"], one["reason"]) for one in ends] == [("ada", "the meters are mended")]

    await aeventually(told, claim="operators are told who resumed it and why")
