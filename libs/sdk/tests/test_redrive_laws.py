"""Laws of sending dead letters again, on the real Kafka: once, whole, and no more than what would be accepted."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import RecordMetadata
from tidemill.cli.main import app
from tidemill.clients.dead_letters import (
    ActionLog,
    Deed,
    letter_topics,
    newest_letters,
    producing,
    read_fates,
    read_letters,
)
from tidemill.clients.judging import Judge
from tidemill.clients.letters import DISCARDED, LEASE_US, OPEN, REDRIVEN, REDRIVING, Letter, Selection
from tidemill.clients.redrive import Redrive, Report, discard
from tidemill.clients.topics import KafkaTarget, read_topic
from tidemill_contracts import dead_letters as wire
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import dead_letters_pb2 as messages
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.instants import format_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.topics import fixed_topics, stream_topics
from tidemill_testkit.plugin import Servers
from typer.testing import CliRunner

pytestmark = pytest.mark.servers

TOPIC, LETTERS = "events.readings", "events.readings.dlq"
STREAM = definition.Stream(name="readings", key_field="id", time_field="at", lateness_ms=3_600_000)
FILE = "ingestion.dead-letters.v1"


def check(stream: str, events: Sequence[ingestion.Event]) -> list[ingestion.Verdict]:
    """Judge as ingestion would after a fix that makes good of everything that says so."""
    assert stream == "readings"
    accepted = ingestion.Verdict(outcome=ingestion.OUTCOME_ACCEPTED)
    refused = ingestion.Verdict(outcome=ingestion.OUTCOME_REFUSED, reason="wrong_type", field="x", message="mend it")
    return [refused if b"hopeless" in event.data else accepted for event in events]


def body(text: str = "mended", *, hours_ago: float = 0) -> bytes:
    at_us = time.time_ns() // 1000 - int(hours_ago * 3_600_000_000)
    return json.dumps({"id": "k", "x": text, "at": format_us(at_us)}).encode()


class Corner:
    """Two partitions of a stream, its dead letters, and what a service would have written there."""

    def __init__(self, target: KafkaTarget, producer: AIOKafkaProducer) -> None:
        self.target = target
        self.producer = producer

    async def refuse(
        self,
        value: bytes,
        *,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int = 1,
        groups: Sequence[str] = ("online",),
        attempt: int = 1,
        reason: str = "wrong_type",
    ) -> RecordMetadata:
        """Write a record and its letters; return where the record lies."""
        original = await self.producer.send_and_wait(
            self.target.prefix + TOPIC, value, key=b"\xfek", partition=partition, headers=list(headers)
        )
        for group in groups:
            await self.letter(value, headers, (TOPIC, partition, original.offset), group, attempt, reason)
        return original

    async def letter(
        self, value: bytes, headers: Any, place: Any, group: str, attempt: int, reason: str = "wrong_type"
    ) -> None:
        topic, partition, offset = place
        ours = {
            wire.TOPIC: topic,
            wire.PARTITION: str(partition),
            wire.OFFSET: str(offset),
            wire.REASON: reason,
            wire.GROUP: group,
            wire.ATTEMPT: str(attempt),
            wire.FIRST_FAILED_AT: "2026-11-21T10:00:00Z",
        }
        said = [*headers, *((name, text.encode()) for name, text in ours.items())]
        await self.producer.send_and_wait(self.target.prefix + LETTERS, value, key=b"\xfek", headers=said)

    async def redrive(
        self, *, dry_run: bool = False, limit: int = 100, late: bool = False, bridged: bool = False, **chosen: Any
    ) -> Report:
        judge = Judge(
            self.target,
            check,
            lambda _: STREAM,
            max_attempts=3,
            allow_late=late,
            check_bridged=check if bridged else None,
        )
        run = Redrive(self.target, judge, deed("mended"), dry_run=dry_run, limit=limit)
        selection = Selection(tuple(await letter_topics(self.target, "readings")), **chosen)
        if dry_run:
            return await run.run(selection, None, lambda _done, _total: None)
        async with producing(self.target) as producer:
            return await run.run(selection, producer, lambda _done, _total: None)

    async def sent(self) -> list[Any]:
        """Return the records that were sent again."""
        async with aclosing(read_topic(self.target, TOPIC, last=None, follow=False)) as records:
            return [one async for one in records if wire.REDRIVEN_FOR in dict(one.headers)]

    async def states(self) -> list[str]:
        fates = await read_fates(self.target)
        found = await read_letters(self.target, [LETTERS], lambda _: True)
        return [fates.of(letter.place).state for letter in found.letters]

    async def act(self, action: messages.DeadLetterAction, at_us: int) -> None:
        name = self.target.prefix + "ingestion.dead-letter-actions.v1"
        await self.producer.send_and_wait(name, to_json(action), timestamp_ms=at_us // 1000)


def deed(why: str) -> Deed:
    return Deed("ada", why, f"run-{time.time_ns()}")


@pytest_asyncio.fixture
async def corner(servers: Servers, topic_prefix: str) -> AsyncIterator[Corner]:
    client = {"bootstrap_servers": servers.kafka}
    actions = [topic for topic in fixed_topics() if topic.name == "ingestion.dead-letter-actions.v1"]
    await create_topics(client, [*stream_topics([("readings", 2)]), *actions], topic_prefix)
    async with AIOKafkaProducer(**client, linger_ms=0) as producer:
        yield Corner(KafkaTarget(servers.kafka, topic_prefix), producer)


async def test_records_of_a_topic_and_of_the_one_made_anew_in_its_place_are_two(corner: Corner) -> None:
    for number in (1, 2):
        value, headers = body(f"of {number}"), [("ce_id", b"id-%d" % number), ("ce_source", b"s")]
        for group in ("online", "join"):
            await corner.letter(value, headers, (TOPIC, 1, 0), group, 1)
    report = await corner.redrive()
    assert (report.chosen, report.accepted) == (2, 2)
    assert sorted(dict(one.headers)["ce_id"] for one in await corner.sent()) == [b"id-1", b"id-2"]
    assert await corner.states() == [REDRIVEN] * 4


async def test_a_structured_event_is_judged_by_its_data_however_it_is_written(corner: Corner) -> None:
    kind = [("content-type", b" Application/CloudEvents+JSON; charset=utf-8")]
    envelope = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}
    hopeless = base64.b64encode(body("hopeless")).decode()
    await corner.refuse(json.dumps(envelope | {"data_base64": hopeless}).encode(), headers=kind)
    await corner.refuse(json.dumps(envelope | {"data": {"at": "2013-01-01T00:00:00Z"}}).encode(), headers=kind)
    await corner.refuse(body())
    report = await corner.redrive(dry_run=True)
    assert report.refused == {"wrong_type": 1, "too_late": 1}


async def test_a_letter_without_its_record_s_value_is_never_sent(corner: Corner) -> None:
    cut = [(wire.VALUE_BYTES, b"3000000"), (wire.VALUE_SHA256, b"ab")]
    headers = {
        wire.TOPIC: TOPIC,
        wire.PARTITION: "1",
        wire.OFFSET: "7",
        wire.REASON: "wrong_type",
        wire.GROUP: "online",
    }
    said = [*((name, text.encode()) for name, text in headers.items()), *cut]
    await corner.producer.send_and_wait(corner.target.prefix + LETTERS, None, key=b"k", headers=said)
    report = await corner.redrive()
    assert report.refused == {"oversized": 1}
    assert not await corner.sent()


async def test_what_a_bridge_refused_is_left_to_its_producer_and_hinders_no_other(corner: Corner) -> None:
    await corner.refuse(body())
    await corner.letter(body(), [], ("legacy.readings", 0, 3), wire.BRIDGE_GROUP + "legacy.readings", 1)
    report = await corner.redrive()
    assert (report.accepted, dict(report.refused)) == (1, {"unsupported": 1})
    assert await corner.states() == [REDRIVEN, OPEN]


async def test_a_letter_is_sent_again_whole_to_its_partition_for_those_who_refused_it_and_once(corner: Corner) -> None:
    headers = [("ce_source", b"s"), ("ce_id", b"1"), ("h", b"\xff")]
    value = body()
    await corner.refuse(value, headers=headers, groups=["online", "join"])
    first = await corner.redrive()
    assert (first.chosen, first.accepted, first.refused.total()) == (1, 1, 0)
    (again,) = await corner.sent()
    assert (again.key, again.value, again.partition) == (b"\xfek", value, 1)
    assert list(again.headers[:3]) == headers
    assert again.headers[-1] == (wire.REDRIVEN_FOR, b"join,online")
    assert await corner.states() == [REDRIVEN, REDRIVEN]
    second = await corner.redrive()
    assert (second.chosen, len(await corner.sent())) == (0, 1)
    fates = await read_fates(corner.target)
    fate = fates.of((LETTERS, 0, 0))
    assert (fate.actor, fate.reason, fate.sent) == ("ada", "mended", (1, again.offset))


async def test_a_record_without_identity_gets_the_one_of_its_place(corner: Corner) -> None:
    original = await corner.refuse(body())
    await corner.redrive()
    (again,) = await corner.sent()
    said = dict(again.headers)
    assert (said["ce_source"], said["ce_id"]) == (f"kafka/{TOPIC}".encode(), f"{TOPIC}/1/{original.offset}".encode())


async def test_a_dry_run_says_why_not_and_does_nothing(corner: Corner) -> None:
    await corner.refuse(body())
    await corner.refuse(body("hopeless"))
    await corner.refuse(body(hours_ago=5))
    await corner.refuse(body(), attempt=3)
    await corner.refuse(body(), reason="too_late")
    # The stream's clock, which the late one lies behind.
    await corner.producer.send_and_wait(corner.target.prefix + TOPIC, body(), partition=1)
    report = await corner.redrive(dry_run=True)
    assert (report.chosen, report.accepted) == (5, 1)
    assert dict(report.refused) == {"wrong_type": 1, "too_late": 2, "too_many_attempts": 1}
    assert [one["message"] for one in report.examples if one["reason"] == "wrong_type"] == ["mend it"]
    assert (await corner.states(), await corner.sent()) == ([OPEN] * 5, [])
    assert (await corner.redrive(dry_run=True, late=True)).accepted == 2


async def test_filters_and_the_limit_leave_the_rest_open(corner: Corner) -> None:
    for number in range(5):
        await corner.refuse(body(str(number)), groups=["online" if number else "join"])
    assert (await corner.redrive(reason="bad_utf8")).chosen == 0
    assert (await corner.redrive(since_us=time.time_ns() // 1000 + 60_000_000)).chosen == 0
    report = await corner.redrive(group="online", limit=3)
    assert (report.accepted, report.more) == (3, True)
    assert await corner.states() == [OPEN, REDRIVEN, REDRIVEN, REDRIVEN, OPEN]
    assert (await corner.redrive()).accepted == 2


async def test_a_filter_finds_the_newest_of_those_it_holds_behind_any_number_of_others(corner: Corner) -> None:
    for number, reason in enumerate(["too_late", "bad_utf8", "bad_utf8", "too_late", "too_late"]):
        await corner.letter(body(str(number)), [], (TOPIC, 1, number), "online", 1, reason)

    async def offsets(last: int, wanted: Callable[[Letter], bool] | None) -> list[int]:
        found = await newest_letters(corner.target, [LETTERS], wanted, last=last)
        return [letter.place[2] for letter in found]

    assert await offsets(2, None) == [3, 4]
    assert await offsets(2, lambda letter: letter.reason == "bad_utf8") == [1, 2]
    assert await offsets(1, lambda letter: letter.reason == "bad_utf8") == [2]
    assert await offsets(9, lambda letter: letter.reason == "too_late") == [0, 3, 4]
    assert await offsets(0, lambda letter: True) == []


async def test_the_list_of_letters_is_filtered_before_it_is_cut(corner: Corner) -> None:
    await corner.letter(body("old"), [], (TOPIC, 1, 0), "join", 1, "bad_utf8")
    await corner.letter(body("new"), [], (TOPIC, 1, 1), "online", 1, "too_late")
    letters = (await read_letters(corner.target, [LETTERS], lambda _: True)).letters
    await discard(ActionLog(corner.target, corner.producer), deed("lost"), letters[:1], lambda _done, _total: None)
    where = ["--kafka", corner.target.bootstrap, "--topic-prefix", corner.target.prefix, "--json"]
    for chosen in (["--reason", "bad_utf8"], ["--group", "join"], ["--state", DISCARDED]):
        done = await asyncio.to_thread(
            CliRunner().invoke, app, ["dead-letters", "list", "readings", "-n", "1", *chosen, *where]
        )
        assert [one["from_offset"] for one in json.loads(done.stdout)["dead_letters"]] == ["0"], chosen


async def test_a_repeat_is_sent_once_but_what_was_refused_again_is_no_repeat(corner: Corner) -> None:
    headers = [("ce_source", b"s"), ("ce_id", b"1")]
    for _ in range(2):
        await corner.refuse(body(), headers=headers, groups=["online", "join"])
    report = await corner.redrive()
    assert (report.accepted, report.duplicates) == (1, 1)
    (again,) = await corner.sent()
    # Refused once more by one group, as its consumer writes it.
    await corner.letter(again.value, again.headers, (TOPIC, again.partition, again.offset), "join", 2)
    report = await corner.redrive()
    assert (report.accepted, report.duplicates) == (1, 0)
    *_, last = await corner.sent()
    said = dict(last.headers)
    assert (said[wire.REDRIVEN_FOR], said[wire.ATTEMPT], said["ce_id"]) == (b"join", b"2", b"1")


def claim(corner: Corner, run_id: str, end: int) -> messages.DeadLetterAction:
    before = progress_pb2.TopicPartitionOffset(topic=TOPIC, partition=1, next_offset=end)
    letters = [messages.LetterFate(partition=0, offset=offset) for offset in (0, 1)]
    return messages.DeadLetterAction(
        action=REDRIVING, topic=LETTERS, letters=letters, actor="eve", run_id=run_id, before=[before]
    )


async def test_what_a_run_sent_before_it_was_killed_is_found_and_the_rest_is_sent(corner: Corner) -> None:
    await corner.refuse(body("sent"))
    last = await corner.refuse(body("not sent"))
    await corner.act(claim(corner, "killed", last.offset + 1), time.time_ns() // 1000 - LEASE_US - 1_000_000)
    headers = wire.redriven_headers([], place=(TOPIC, 1, 0), letter=f"{LETTERS}/0/0", groups=["online"], attempt=1)
    name = corner.target.prefix + TOPIC
    await corner.producer.send_and_wait(name, body("sent"), partition=1, headers=headers)
    report = await corner.redrive()
    assert (report.recovered, report.accepted) == (1, 1)
    assert [json.loads(one.value)["x"] for one in await corner.sent()] == ["sent", "not sent"]
    assert await corner.states() == [REDRIVEN, REDRIVEN]


async def test_what_was_sent_to_a_producers_own_topic_before_a_kill_is_found_there(corner: Corner) -> None:
    raw = f"{corner.target.prefix.strip('.')}-raw"
    admin = AIOKafkaAdminClient(bootstrap_servers=corner.target.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(raw, 1, 1)])
    await admin.close()
    letter = (raw, 0, 7)
    await corner.letter(body("sent"), [], letter, wire.BRIDGE_GROUP + raw, 1)
    killed = claim(corner, "killed", 0)
    del killed.letters[1:]
    killed.before[0].topic, killed.before[0].partition = raw, 0
    await corner.act(killed, time.time_ns() // 1000 - LEASE_US - 1_000_000)
    headers = wire.redriven_headers(
        [], place=letter, letter=f"{LETTERS}/0/0", groups=[wire.BRIDGE_GROUP + raw], attempt=1
    )
    await corner.producer.send_and_wait(raw, body("sent"), partition=0, headers=headers)
    report = await corner.redrive(bridged=True)
    assert (report.recovered, report.chosen) == (1, 0)
    assert await corner.states() == [REDRIVEN]


async def test_letters_that_another_run_claims_are_left_to_it(corner: Corner) -> None:
    await corner.refuse(body())
    last = await corner.refuse(body())
    now_us = time.time_ns() // 1000
    await corner.act(claim(corner, "other", last.offset + 1), now_us)
    await corner.act(claim(corner, "mine", last.offset + 1), now_us + 1_000_000)
    fates = await read_fates(corner.target)
    assert fates.of((LETTERS, 0, 0)).run_id == "other"
    assert (await corner.redrive()).chosen == 0


async def test_discarded_letters_keep_who_and_why_and_are_never_sent(corner: Corner) -> None:
    await corner.refuse(body())
    found = await read_letters(corner.target, [LETTERS], lambda _: True)
    async with producing(corner.target) as producer:
        await discard(ActionLog(corner.target, producer), deed("a test"), found.letters, lambda _done, _total: None)
    fate = (await read_fates(corner.target)).of((LETTERS, 0, 0))
    assert (fate.state, fate.actor, fate.reason) == (DISCARDED, "ada", "a test")
    assert (await corner.redrive()).chosen == 0


async def test_a_record_of_tidemills_own_topics_goes_back_where_it_decodes_now(corner: Corner) -> None:
    client = {"bootstrap_servers": corner.target.bootstrap}
    names = {FILE, "registry.models.v1"}
    await create_topics(client, [topic for topic in fixed_topics() if topic.name in names], corner.target.prefix)
    for value in (b"{}", b"no JSON"):
        headers = [
            (wire.TOPIC, b"registry.models.v1"),
            (wire.PARTITION, b"0"),
            (wire.OFFSET, b"7" if value == b"{}" else b"8"),
            (wire.GROUP, b"monitoring"),
        ]
        await corner.producer.send_and_wait(corner.target.prefix + FILE, value, key=b"m", headers=headers)
    judge = Judge(corner.target, check, lambda _: STREAM, max_attempts=3, allow_late=False)
    run = Redrive(corner.target, judge, deed("mended"), dry_run=False, limit=9)
    async with producing(corner.target) as producer:
        report = await run.run(Selection((FILE,)), producer, lambda _done, _total: None)
    assert (report.accepted, dict(report.refused)) == (1, {"undecodable": 1})
    async with aclosing(read_topic(corner.target, "registry.models.v1", last=None, follow=False)) as records:
        assert [(one.key, one.value) async for one in records] == [(b"m", b"{}")]
