"""The one checked way to embed Faust: control-plane agents and timers, nothing skipped, nothing left hanging.

Settings and pattern are those that held under broker kills, worker kills and random exceptions. An event is
acknowledged and committed after its decision; decisions are idempotent, since a crash in between repeats them. Only
this module and `faust_settings` import Faust, so that a service without agents does not pay for it (extra `faust`).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import faust
import mode
import structlog
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from faust.exceptions import NotReady
from faust.types import TP
from tidemill_contracts.dead_letters import addressed_to
from tidemill_contracts.kafka_refusals import refusal

from tidemill_runtime.batches import PlainRecord, Record, Refused
from tidemill_runtime.claims import Claim
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.errors import Fatal, Poison, Retryable, StateLost
from tidemill_runtime.faust_settings import faust_settings
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.positions import LostEnds, Offsets, Partition, Positions
from tidemill_runtime.retries import delays
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.standing import Standing
from tidemill_runtime.topic_ids import TopicLook
from tidemill_runtime.watchdog import Sighting, watch

_STOP_LIMIT_S = 10.0
_MAX_REBUILDS = 20
_SIGHT_LIMIT_S = 5.0
# How often it is looked whether the topics are still those that are read.
_LOOK_S = 2.0
_THEN = "it is read from its beginning"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Agent:
    """Decides each record of some logical topics, one at a time.

    `decide` writes (topic, partition, offset) under a unique key in the transaction of its effect, since it may be
    called again. `Retryable` repeats it, `Poison` dead-letters the record, anything else ends the service.
    """

    name: str
    topics: Sequence[str]
    decide: Callable[[Record], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Timer:
    """Calls `fire` at an interval, on every replica: claim a slot in PostgreSQL where once is meant."""

    name: str
    every_s: float
    fire: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FaustOptions:
    """Bounds of one Faust app; `datadir` must be writable."""

    group: str
    datadir: Path
    retry_limit_s: float = 300.0
    stall_s: float = 45.0


class FaustApp(Component):
    """Runs agents and timers in a Faust app that is rebuilt when Kafka broke it; a `Component` for `running`."""

    def __init__(
        self,
        kafka: KafkaSettings,
        options: FaustOptions,
        agents: Sequence[Agent],
        *,
        timers: Sequence[Timer] = (),
        dead_letters: DeadLetters | None = None,
        health: Health | None = None,
    ) -> None:
        self._kafka = kafka
        self._options = options
        self._agents = agents
        self._timers = timers
        self._dead_letters = dead_letters
        self._claim = Claim(kafka, options.group)
        self._topics = sorted({topic for agent in agents for topic in agent.topics})
        self.positions = Positions(self._topics)
        self._stopping = asyncio.Event()
        self._reassigned = asyncio.Event()
        self._failure: Exception | None = None
        self._ended = asyncio.Event()
        self._standing = Standing(f"faust:{options.group}", health)
        self._decided = 0
        # While it runs.
        self._app: Any = None
        self._look = TopicLook(kafka)
        self._lost_ends = LostEnds()

    def fault(self) -> str | None:
        """Return what is wrong, for readiness."""
        return self._standing.fault

    def stop(self) -> None:
        """Take in nothing more; a decision in work is finished or made again by the next process."""
        self._stopping.set()
        self._ended.set()

    async def reached(self, offsets: Offsets) -> None:
        """Return once everything before `offsets` is decided; what lies behind the end of a log is not waited for."""
        await self.positions.reached_within(offsets, self._within)

    async def _within(self, offsets: Offsets) -> Offsets:
        ends: Offsets = {}
        if self._app is not None:
            with suppress(KafkaError, OSError, TimeoutError, NotReady):
                ends = await self._ends(self._app, offsets)
        return {one: min(offset, ends.get(one, offset)) for one, offset in offsets.items()}

    async def run(self) -> None:
        """Run until `stop`. Raises what a decision raised, `Stalled`, or `Fatal` where Faust does not come back."""
        try:
            await self._run()
        finally:
            await self._look.close()

    async def _run(self) -> None:
        rebuilds, decided = 0, 0
        for delay_s in delays(0.5, 10.0):
            try:
                await self._wait_for_topics()
                if self._stopping.is_set():
                    return
                await self._live(self._build())
            except (KafkaError, OSError) as error:
                self._standing.waits(await refusal(self._kafka.client_kwargs()) or f"Kafka: {error!r}")
            if self._failure is not None:
                raise self._failure
            if self._stopping.is_set():
                return
            rebuilds = 1 if self._decided > decided else rebuilds + 1
            decided = self._decided
            if rebuilds > _MAX_REBUILDS:
                raise Fatal(f"the Faust app of {self._options.group} crashed {rebuilds} times without a decision")
            await sleep_unless(self._stopping, delay_s)

    async def _live(self, app: Any) -> None:
        watchdog = asyncio.create_task(self._watch(app), name="faust-watchdog")
        try:
            await app.start()
            self._app = app
            # Returns when asked to stop, when a decision failed, and when Faust itself crashed.
            ended = asyncio.ensure_future(app.wait(self._ended.wait()))
            await asyncio.wait({ended, watchdog}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if watchdog.done():
                watchdog.result()
            if not self._stopping.is_set():
                why = "it is begun anew" if app.crash_reason is None else f"Faust crashed: {app.crash_reason!r}"
                self._standing.note(why)
        finally:
            self._app = None
            watchdog.cancel()
            await _end(app)

    def _build(self) -> Any:
        settings = faust_settings(self._kafka, self._options.group, self._options.datadir)
        app = faust.App(self._kafka.physical(self._options.group), **settings)
        for agent in self._agents:
            names = [self._kafka.physical(topic) for topic in agent.topics]
            topic = app.topic(
                *names, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", internal=False
            )
            app.agent(topic, name=agent.name, supervisor_strategy=mode.CrashingSupervisor)(self._agent(app, agent))
        for timer in self._timers:
            app.timer(interval=timer.every_s, name=timer.name)(self._timer(timer))
        app.on_partitions_assigned.connect(self._on_assigned)

        async def begin_within(*_: object, **__: object) -> None:
            await self._begin_within(app)

        app.on_rebalance_complete.connect(begin_within, weak=False)
        return app

    def _agent(self, app: Any, agent: Agent) -> Callable[[Any], Awaitable[None]]:
        async def work(stream: Any) -> None:
            events: AsyncIterator[Any] = stream.noack().events()
            async for event in events:
                record = _record(event.message)
                await self._decide(agent, record)
                event.ack()
                await app.consumer.commit()
                self._decided += 1
                partition = Partition(self._kafka.logical(record.topic), record.partition)
                self.positions.advance({partition: record.offset + 1})

        return work

    def _timer(self, timer: Timer) -> Callable[[], Awaitable[None]]:
        async def fire() -> None:
            try:
                await timer.fire()
            except Retryable as error:
                log.warning("timer_missed", timer=timer.name, error=str(error))
            except Exception as error:
                self._fail(error)
                raise

        return fire

    async def _decide(self, agent: Agent, record: PlainRecord) -> None:
        if not addressed_to(record.headers, self._options.group):
            return
        began_s = monotonic()
        for delay_s in delays():
            try:
                await self._attempt(agent, record)
            except Retryable as error:
                if monotonic() - began_s > self._options.retry_limit_s:
                    self._fail(fatal := Fatal(f"{agent.name} gave up on offset {record.offset}: {error}"))
                    raise fatal from error
                self._standing.waits(f"retrying: {error}")
                self._standing.excused = True
                await asyncio.sleep(delay_s)
            except Exception as error:
                self._fail(error)
                raise
            else:
                if self._standing.excused:
                    self._standing.goes_on()
                return

    async def _attempt(self, agent: Agent, record: PlainRecord) -> None:
        try:
            await agent.decide(record)
            refused = []
        except Poison as poison:
            if self._dead_letters is None:
                raise Fatal(
                    f"{agent.name} refuses offset {record.offset} and has no dead letters: {poison}"
                ) from poison
            refused = [Refused(record, poison)]
        if self._dead_letters is not None:
            place = Partition(self._kafka.logical(record.topic), record.partition)
            await self._dead_letters.send(refused, 1, {place: [record]})

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._ended.set()

    async def _on_assigned(self, *_: object, **__: object) -> None:
        self._reassigned.set()

    async def _wait_for_topics(self) -> None:
        """An agent whose topic is missing starts "healthy" and never gets anything; so wait for the topics first."""
        wanted = {self._kafka.physical(topic) for topic in self._topics}
        for delay_s in delays(0.1, 2.0):
            if self._stopping.is_set():
                return
            admin = AIOKafkaAdminClient(**self._kafka.client_kwargs())
            try:
                await admin.start()
                missing = wanted - set(await admin.list_topics())
            finally:
                await admin.close()
            if not missing:
                return
            self._standing.note(f"topics do not exist yet: {sorted(missing)}")
            await sleep_unless(self._stopping, delay_s)

    async def _begin_within(self, app: Any) -> None:
        """Have the group begin anew where a log ends before what it has read: Faust drops every record up to there.

        Called before it looks up where to begin.
        """
        held: list[TP] = sorted(app.consumer.assignment())
        committed = await self._committed() if held else {}
        ends: Mapping[TP, int] = await app.consumer.highwaters(*held) if held else {}
        if lost := [place for place in held if committed.get(place, 0) > ends[place]]:
            # As a member of the group, of which there may be others.
            await app.consumer._commit(await app.consumer.earliest_offsets(*lost))
            log.error("the_log_is_another_one", group=self._options.group, places=lost, then=_THEN)

    async def _committed(self) -> dict[tuple[str, int], int]:
        admin = AIOKafkaAdminClient(**self._kafka.client_kwargs())
        try:
            await admin.start()
            stored = await admin.list_consumer_group_offsets(self._kafka.physical(self._options.group))
        finally:
            await admin.close()
        return {(place.topic, place.partition): meta.offset for place, meta in stored.items() if meta.offset >= 0}

    async def _watch(self, app: Any) -> None:
        tasks = {
            asyncio.create_task(self._adopt_assignments(app), name="faust-assignments"),
            asyncio.create_task(self._watch_stalls(app), name="faust-stalls"),
            asyncio.create_task(self._watch_logs(app), name="faust-logs"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def _watch_logs(self, app: Any) -> None:
        """Return once a topic was made anew, or a log ends before what was read: Faust drops what comes there."""
        ids: dict[str, bytes] = {}
        others: list[str] = []
        while not others:
            try:
                found = await self._look.known(self._topics)
                ids = {name: topic.id for name, topic in found.items()} | ids
                others = [name for name, topic in found.items() if topic.id != ids[name]]
                if not others and self._app is app:
                    lost = self._lost_ends.among(self.positions.next, await self._ends(app, self.positions.next))
                    others = sorted({place.topic for place in lost})
            except (Retryable, StateLost, KafkaError, OSError, TimeoutError, NotReady) as error:
                log.info("logs_not_looked_at", group=self._options.group, error=str(error))
            await asyncio.sleep(0 if others else _LOOK_S)
        log.error("the_log_is_another_one", group=self._options.group, topics=others, then=_THEN)
        self.positions.reset({})

    async def _ends(self, app: Any, partitions: Iterable[Partition]) -> Offsets:
        """Return where the logs end of the partitions that are held."""
        places = {TP(self._kafka.physical(one.topic), one.number): one for one in partitions}
        held = [place for place in places if place in app.consumer.assignment()]
        async with asyncio.timeout(_SIGHT_LIMIT_S):
            ends: Mapping[TP, int] = await app.consumer.highwaters(*held) if held else {}
        return {places[place]: end for place, end in ends.items()}

    async def _watch_stalls(self, app: Any) -> None:
        async def sight() -> Sighting:
            return await self._sight(app)

        await watch(sight, self._options.stall_s, self._options.group, self._standing.stands_still)

    async def _adopt_assignments(self, app: Any) -> None:
        while True:
            await self._reassigned.wait()
            self._reassigned.clear()
            await self._adopt(app)

    async def _adopt(self, app: Any) -> None:
        """Start the positions of an assignment at the committed offsets: a bound from below, whatever runs by now."""
        held: list[TP] = sorted(app.consumer.assignment())
        await self._claim.check([TopicPartition(*place) for place in held])
        committed = await self._committed()
        earliest: Mapping[TP, int] = await app.consumer.earliest_offsets(*held) if held else {}
        before = self.positions.next
        start = {}
        for place in held:
            partition = Partition(self._kafka.logical(place.topic), place.partition)
            known = committed.get((place.topic, place.partition), earliest[place])
            start[partition] = max(known, before.get(partition, 0))
        self.positions.reset(start)
        self._standing.note(None)
        log.info("assigned", group=self._options.group, partitions=len(held))

    async def _sight(self, app: Any) -> Sighting:
        held = sorted(app.consumer.assignment()) if app.consumer is not None else []
        applied = sum(self.positions.next.values())
        try:
            async with asyncio.timeout(_SIGHT_LIMIT_S):
                ends: Mapping[TP, int] = await app.consumer.highwaters(*held) if held else {}
        except (KafkaError, OSError, TimeoutError):
            return Sighting(assigned=True, lag=None, applied=applied)
        positions = self.positions.next
        lag = sum(
            max(0, end - positions.get(Partition(self._kafka.logical(place.topic), place.partition), 0))
            for place, end in ends.items()
        )
        return Sighting(bool(held), lag, applied, excused=self._standing.excused)


async def _end(app: Any) -> None:
    """Stop the app; `stop` hangs with Kafka away and swallows cancellation, so it is waited for and then left."""
    stopping = asyncio.ensure_future(app.stop())
    done, _ = await asyncio.wait({stopping}, timeout=_STOP_LIMIT_S)
    if not done:
        raise Fatal("the Faust app did not stop; the process ends instead")
    stopping.result()


def _record(message: Any) -> PlainRecord:
    return PlainRecord(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        timestamp=int((message.timestamp or 0) * 1000),
        key=message.key,
        value=message.value,
        headers=list(message.headers or ()),
    )
