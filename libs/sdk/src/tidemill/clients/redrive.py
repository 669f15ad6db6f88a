"""Sends dead letters again, each once: claim, send, record; a claim that nobody finished is looked up in the log.

    choose open letters → judge → claim (first in the log holds) → send → record as redriven

What was sent carries the id of its letters, so that after a crash between the two last steps the topic itself tells.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata
from tidemill_contracts import dead_letters as wire
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.reasons import Reason

from tidemill.clients.dead_letters import ActionLog, Deed, read_fates, read_letters
from tidemill.clients.judging import Judge, Judgement, Repeats
from tidemill.clients.letters import (
    DISCARDED,
    DUPLICATE,
    LEASE_US,
    REDRIVEN,
    REDRIVING,
    Fates,
    Item,
    Letter,
    Place,
    Selection,
    items_of,
    place_of,
)
from tidemill.clients.topics import KafkaTarget, TopicError, list_topics, positions_now, read_from

CHUNK = 200
EXAMPLES = 20


@dataclass
class Report:
    """What became of the letters that were meant, by refused record."""

    dry_run: bool
    chosen: int = 0
    accepted: int = 0
    duplicates: int = 0
    recovered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    # There are letters that this run did not look at.
    more: bool = False
    interrupted: bool = False

    def refuse(self, judgement: Judgement) -> None:
        """Count a record that would not be accepted."""
        self.refused[judgement.reason] += 1
        if len(self.examples) < EXAMPLES:
            said = {"reason": str(judgement.reason), "field": judgement.field, "message": judgement.message}
            self.examples.append({"letter": judgement.item.first.id, **said})

    def to_json(self) -> dict[str, Any]:
        """Return it as the answer of a command."""
        return {
            "dry_run": self.dry_run,
            "records": self.chosen,
            "would_be_redriven" if self.dry_run else "redriven": self.accepted,
            "duplicates": self.duplicates,
            "recovered": self.recovered,
            "refused": dict(self.refused),
            "examples": self.examples,
            "more": self.more,
            "interrupted": self.interrupted,
        }


class Redrive:
    """One run over the letters that a selection holds; `report` grows while it goes."""

    def __init__(self, target: KafkaTarget, judge: Judge, deed: Deed, *, dry_run: bool, limit: int) -> None:
        self._target = target
        # Topics of producers' own have no prefix.
        self._raw = replace(target, prefix="")
        self._judge = judge
        self._deed = deed
        self._limit = limit
        self._repeats = Repeats()
        self.report = Report(dry_run)

    async def run(
        self, selection: Selection, producer: AIOKafkaProducer | None, after: Callable[[int, int], None]
    ) -> Report:
        """Judge the letters and, with a producer, send what is accepted; `after` is told how many of how many.

        Raises `TopicError`, and what the judge raises.
        """
        fates = await read_fates(self._target)
        if producer is not None:
            await self._recover(fates, ActionLog(self._target, producer))
            fates = await read_fates(self._target)
        chosen = await self._choose(selection, fates)
        report = self.report
        for chunk in chunked(chosen, CHUNK):
            if report.accepted >= self._limit:
                report.more = True
                break
            accepted, repeats = await self._judged(chunk)
            if producer is not None:
                await self._send(accepted, repeats, producer)
            else:
                report.accepted += len(accepted)
                report.duplicates += len(repeats)
            after(report.chosen, len(chosen))
        return report

    async def _choose(self, selection: Selection, fates: Fates) -> list[Item]:
        now_us = time.time_ns() // 1000
        redriven: list[Letter] = []

        def wanted(letter: Letter) -> bool:
            self._repeats.know(letter)
            if fates.of(letter.place).state == REDRIVEN:
                redriven.append(letter)
            return selection.holds(letter) and fates.is_open(letter.place, now_us)

        found = await read_letters(self._target, selection.topics, wanted)
        self.report.more = found.more
        for item in items_of(redriven):
            self._repeats.sent(item)
        return items_of(found.letters)

    async def _judged(self, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Return the records to send, at most as many as the limit leaves, and those that are repeats."""
        accepted: list[Item] = []
        repeats: list[Item] = []
        for judgement in await self._judge.judge(items):
            if self.report.accepted + len(accepted) >= self._limit:
                self.report.more = True
                break
            self.report.chosen += 1
            if judgement.reason:
                self.report.refuse(judgement)
            elif self._repeats.holds(judgement.item):
                repeats.append(judgement.item)
            else:
                self._repeats.sent(judgement.item)
                accepted.append(judgement.item)
        return accepted, repeats

    async def _send(self, accepted: Sequence[Item], repeats: Sequence[Item], producer: AIOKafkaProducer) -> None:
        actions = ActionLog(self._target, producer)
        if repeats:
            await record(actions, self._deed, DUPLICATE, letters_of(repeats), "left out as repeats")
            self.report.duplicates += len(repeats)
        if not accepted:
            return
        claimed_us = await self._claim(actions, accepted)
        fates = await read_fates(self._target)
        mine = [item for item in accepted if self._holds(fates, item)]
        sends = []
        for item in mine:
            if time.time_ns() // 1000 - claimed_us > LEASE_US // 3:
                raise TopicError("Kafka is too slow: a claim ran out before its letters were sent", reached=True)
            sends.append((item, await self._send_one(producer, item)))
        sent = {}
        for item, future in sends:
            if future is not None:
                placed: RecordMetadata = await future
                sent.update({letter.place: (placed.partition, placed.offset) for letter in item.letters})
                self.report.accepted += 1
        if sent:
            await record(actions, self._deed, REDRIVEN, list(sent), "sent again", sent)

    def _holds(self, fates: Fates, item: Item) -> bool:
        """Say whether the claim on all of a record's letters is this run's."""
        found = [fates.of(letter.place) for letter in item.letters]
        return all(fate.state == REDRIVING and fate.run_id == self._deed.run_id for fate in found)

    async def _claim(self, actions: ActionLog, items: Sequence[Item]) -> int:
        before: list[progress_pb2.TopicPartitionOffset] = []
        for topic, bridged in sorted({(item.origin[0], item.bridged) for item in items if item.origin is not None}):
            before += await positions_now(self._raw if bridged else self._target, [topic])
        claimed_us = time.time_ns() // 1000
        for topic, places in by_topic(letters_of(items)).items():
            action = self._deed.action(REDRIVING, topic, places, "about to be sent again")
            action.before.extend(before)
            await actions.write(action)
        return claimed_us

    async def _send_one(self, producer: AIOKafkaProducer, item: Item) -> "asyncio.Future[Any] | None":
        assert item.origin is not None
        topic, partition, _ = item.origin
        first, prefix = item.first, (self._raw if item.bridged else self._target).prefix
        if partition not in await producer.partitions_for(prefix + topic):
            message = f"topic {topic} has no partition {partition} any more: discard it"
            self.report.refuse(Judgement(item, Reason.OUT_OF_RANGE, "", message))
            return None
        headers = wire.redriven_headers(
            first.headers,
            place=item.origin,
            letter=",".join(letter.id for letter in item.letters),
            groups=item.groups,
            attempt=item.attempt,
        )
        sending: asyncio.Future[Any] = await producer.send(
            prefix + topic, first.value, key=first.key, partition=partition, headers=headers
        )
        return sending

    async def _recover(self, fates: Fates, actions: ActionLog) -> None:
        """Record what runs that ended in the middle had sent after all."""
        abandoned = fates.abandoned(time.time_ns() // 1000)
        starts: dict[str, dict[int, int]] = {}
        for fate in abandoned.values():
            for (topic, partition), offset in fate.before.items():
                known = starts.setdefault(topic, {})
                known[partition] = min(offset, known.get(partition, offset))
        # A claim does not say whose topic it is; where both have one of the name, both are looked through.
        sent: dict[Place, tuple[int, int]] = {}
        for target in (self._target, self._raw):
            present = set(await list_topics(target)) if starts else set()
            for topic in sorted(present & starts.keys()):
                async with aclosing(read_from(target, topic, starts[topic].get)) as log:
                    async for sent_again in log:
                        place_in_log = (sent_again.partition, sent_again.offset)
                        sent |= dict.fromkeys(abandoned.keys() & _letters_in(sent_again.headers), place_in_log)
        if sent:
            await record(actions, self._deed, REDRIVEN, list(sent), "found sent, as a run that ended left it", sent)
            self.report.recovered += len(sent)


async def discard(actions: ActionLog, deed: Deed, letters: Sequence[Letter], after: Callable[[int, int], None]) -> None:
    """Record that letters are given up; their bytes stay in their topic for as long as it keeps them."""
    done = 0
    for chunk in chunked(letters, CHUNK):
        await record(actions, deed, DISCARDED, [letter.place for letter in chunk], "discarded")
        done += len(chunk)
        after(done, len(letters))


async def record(
    actions: ActionLog,
    deed: Deed,
    kind: str,
    places: Sequence[Place],
    said: str,
    sent: dict[Place, tuple[int, int]] | None = None,
) -> None:
    """Write one action for each topic of the letters."""
    for topic, found in by_topic(places).items():
        action = deed.action(kind, topic, found, said)
        for fate, place in zip(action.letters, found, strict=True):
            if sent is not None:
                fate.sent_partition, fate.sent_offset = sent[place]
        await actions.write(action)


def letters_of(items: Sequence[Item]) -> list[Place]:
    """Return the places of all letters of some records."""
    return [letter.place for item in items for letter in item.letters]


def by_topic(places: Sequence[Place]) -> dict[str, list[Place]]:
    """Return places by their topic."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place[0], []).append(place)
    return found


def chunked(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items, in order."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _letters_in(headers: Sequence[tuple[str, bytes]]) -> set[Place]:
    said = dict(headers).get(wire.LETTER)
    if not said:
        return set()
    try:
        return {place_of(text) for text in said.decode().split(",")}
    except ValueError:
        return set()
