"""Sending dead letters of a producer's own topic again: through the bridge, once, and only when it is asked for."""

import json
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tidemill_contracts.cloudevents import from_headers
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

METERS = '''
"""Meters."""
from datetime import datetime
import tidemill as tm

class Reading(tm.Event, stream="readings", key="meter", time="at", lateness="365d", partitions=2):
    meter: str
    at: datetime
'''
WITH_VOLTS = METERS + "    volts: float | None\n"
PLAIN = {"meter": "m", "volts": 230.0, "at": "2026-06-04T10:00:00Z"}


async def test_letters_of_a_bridged_topic_go_through_the_bridge_again_once_the_stream_takes_them(desk: Any) -> None:
    raw = f"{desk.kafka.topic_prefix.strip('.')}-meters"
    admin = AIOKafkaAdminClient(**desk.kafka.client_kwargs())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(raw, 3, 1)])
        await desk.ingestion.start(ROLES="door,bridge", BRIDGES=f"{raw}=readings")
        assert (await desk.apply(METERS)).code == 0
        await bridged(desk, raw)
    finally:
        await admin.delete_topics([raw])
        await admin.close()


async def bridged(desk: Any, raw: str) -> None:
    structured = {"specversion": "1.0", "id": "s-1", "source": "meters", "type": "t", "data": PLAIN}
    async with AIOKafkaProducer(**desk.kafka.client_kwargs()) as producer:
        await producer.send_and_wait(raw, json.dumps(PLAIN).encode(), partition=2)
        envelope = [("content-type", b"application/cloudevents+json")]
        await producer.send_and_wait(raw, json.dumps(structured).encode(), partition=1, headers=envelope)

    async def refused() -> bool:
        return len(await desk.log("events.readings.dlq")) == 2

    await aeventually(refused, claim="the bridge refuses a field that is not declared")
    redrive = ("dead-letters", "redrive", "readings", "--json")
    assert (await desk.run(*redrive, "--bridged")).json["refused"] == {"unknown_field": 2}
    assert (await desk.apply(WITH_VOLTS)).code == 0
    left = await desk.run(*redrive)
    assert (left.code, left.json["refused"]) == (1, {"unsupported": 2})
    assert "--bridged" in left.json["examples"][0]["message"]
    assert (await desk.run(*redrive, "--bridged", "--dry-run")).json["would_be_redriven"] == 2
    done = await desk.run(*redrive, "--bridged", "--why", "volts are declared")
    assert (done.code, done.json["redriven"]) == (0, 2), done
    assert (await desk.run(*redrive, "--bridged")).json["records"] == 0

    async def through() -> bool:
        log = await desk.log("events.readings")
        identities = {(one.source, one.id) for one in (from_headers(record.headers) for record in log)}
        assert len(log) <= 2
        return identities == {(f"kafka/{raw}", f"{raw}/2/0"), ("meters", "s-1")}

    await aeventually(through, claim="the bridge copies both under the identity of the first time")
