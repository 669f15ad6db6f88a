"""Lives one schedule on the real servers and checks what must hold in the end."""

import asyncio
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka_log import Log
from machines import Kafka, Worker
from offline_log import OfflineLog
from oracle import StreamLog, WrongError, check_letters
from redis_servers import Redis
from redriving import Redriving
from schedule import ARCHIVER, Act, Schedule
from served import check_served
from tidemill.clients.letters import ACTIONS_TOPIC
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.topics import dead_letter_topic, events_topic
from tidemill_features.layout import Checkpoint, checkpoint_key
from tidemill_runtime.errors import Retryable, TidemillError
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.topic_ids import TopicLook
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.nursery import Nursery
from workload import Producing, moments

RECOVERY_S = 60.0
SESSION_MS = 1_500
GROUP = "feature-online"
ALSO_ARCHIVED = ("serving.predictions.v1", "monitoring.outcomes.v1", "monitoring.clock.v1")


@dataclass(frozen=True)
class Machines:
    """What a run lives on; `postgres`: a database of its own, empty where nothing is archived."""

    kafka: Kafka
    redis: Redis
    nursery: Nursery
    postgres: str = ""


class Life:
    """One run on servers that are up."""

    def __init__(self, schedule: Schedule, machines: Machines, folder: Path) -> None:
        self.schedule = schedule
        self._redis, self._kafka, self._nursery = machines.redis, machines.kafka, machines.nursery
        self._offline = OfflineLog(machines.postgres, folder) if machines.postgres else None
        self._folder = folder
        self.project = f"chaos-{schedule.seed}"
        self.settings = KafkaSettings(bootstrap=machines.kafka.bootstrap, topic_prefix=f"{folder.name}.")
        self._producing = Producing(schedule.seed, schedule.shape.streams)
        self._producer = Producer(self.settings, ack_timeout_s=5)
        self._look = TopicLook(self.settings)
        self._sending: set[asyncio.Task[None]] = set()
        self._redrives: set[asyncio.Task[Any]] = set()
        # The worker of each place, and those that were replaced while they were frozen.
        self._workers: dict[str, Worker] = {}
        self._zombies: list[Worker] = []
        # Every definition that a stream has had, the one that holds last.
        self._definitions = {stream.name: [stream] for stream in schedule.shape.streams}
        self._redriving = Redriving(self.settings, self._stream)
        self._registered = 0
        self._started = 0
        self._background: set[asyncio.Task[None]] = set()
        self._crashes: list[str] = []
        self._recreated: set[str] = set()

    async def live(self) -> None:
        """Do what the schedule says, then check. Raises `WrongError` or `NeverTrueError`."""
        await self._open()
        try:
            for act in self.schedule.acts:
                await self._act(act)
                await asyncio.sleep(act.delay_ms / 1000)
            await self._recovered()
        finally:
            living = [*self._workers.values(), *self._zombies]
            self._workers.clear()
            for worker in living:
                await worker.kill()
            for task in self._sending | self._background | self._redrives:
                task.cancel()
            await self._look.close()
            await self._producer.__aexit__(None, None, None)

    async def _open(self) -> None:
        topics = {"registry.pipelines.v1": 1, ACTIONS_TOPIC: 1}
        for stream in self.schedule.shape.streams:
            topic = events_topic(stream.name)
            topics |= {topic: stream.partitions, dead_letter_topic(topic): 1}
        if self._offline is not None:
            topics |= dict.fromkeys(ALSO_ARCHIVED, 1)
        async with Log(self.settings) as log:
            await log.create(topics)
        await self._producer.__aenter__()
        for _ in range(self.schedule.first_views):
            await self._register()

    async def _act(self, act: Act) -> None:
        match act.what:
            case "send":
                task = asyncio.create_task(self._send(self._producing.records(act.count)))
                self._sending.add(task)
                if not act.flag:
                    await self._all_sent()
            case "start" | "replace":
                if act.what == "replace":
                    self._zombies.append(self._workers.pop(act.place))
                await self._start(act.place)
            case "kill":
                await self._workers.pop(act.place).kill()
            case "stop":
                worker = self._workers.pop(act.place)
                worker.send(signal.SIGTERM)
                await self._ended(worker)
            case "freeze":
                self._workers[act.place].send(signal.SIGSTOP)
            case "wake":
                for worker in [*self._workers.values(), *self._zombies]:
                    worker.send(signal.SIGCONT)
            case "wait":
                await asyncio.sleep(SESSION_MS / 1000)
            case "await":
                await self._folded()
            case "await-rows":
                await self._archived()
            case "redis-dies":
                node = self._redis.nodes[int(act.place or 0)]
                node.kill()
                node.lose(act.count)
            case "redis-lives":
                await self._redis.start()
            case "kafka-dies":
                self._kafka.kill()
            case "kafka-lives":
                await self._kafka.start()
            case "recreate" | "grow":
                await self._all_sent()
                await self._change(act.what)
            case "register":
                await self._register()
            case "mend":
                await self._mend(later=act.flag)
            case "redrive":
                self._redrives.add(asyncio.create_task(self._redriving.at_once(act.count)))
            case "redriven":
                await self._all_redriven()
            case "fault":
                pass
            case _:
                raise ValueError(f"no act {act.what!r}")

    async def _change(self, what: str) -> None:
        """Make the first stream's topic anew, or let it grow; producers then begin anew too."""
        stream = self.schedule.shape.streams[0].name
        async with Log(self.settings) as log:
            if what == "recreate":
                await log.recreate(events_topic(stream))
                self._recreated.add(stream)
                self._producing.forget()
            else:
                self._producing.grow(stream, await log.grow(events_topic(stream), 2))
        await self._producer.__aexit__(None, None, None)
        self._producer = Producer(self.settings, ack_timeout_s=5)
        await self._producer.__aenter__()

    async def _register(self) -> None:
        """Register the next view, with its stream."""
        views = self.schedule.shape.views
        if self._registered == len(views):
            return
        self._registered += 1
        await self._define(views[self._registered - 1])

    async def _define(self, view: definition.View) -> None:
        closure = definition.Definition(streams=[self._stream(view.stream)], views=[view])
        record = definition.DefinitionRecord(kind="view", name=view.name, revision=1, definition=closure)
        await self._send([Outgoing("registry.pipelines.v1", to_json(record), key=f"view/{view.name}".encode())])

    async def _mend(self, *, later: bool) -> None:
        """Let the streams allow larger events, and later ones too."""
        for versions in self._definitions.values():
            stream = definition.Stream()
            stream.CopyFrom(versions[-1])
            stream.max_event_bytes *= 4
            stream.lateness_ms *= 1 + 2 * later
            versions.append(stream)
        for view in self.schedule.shape.views[: self._registered]:
            await self._define(view)

    async def _all_redriven(self) -> None:
        await asyncio.gather(*self._redrives)
        self._redrives.clear()

    async def _send(self, records: Sequence[Outgoing]) -> None:
        """Send until all are acknowledged, as producers do: what may have arrived is sent again."""
        left = list(records)
        while left:
            outcomes = await self._producer.send_each(left)
            for outcome in outcomes:
                if isinstance(outcome, TidemillError) and not isinstance(outcome, Retryable):
                    raise outcome
            left = [one for one, outcome in zip(left, outcomes, strict=True) if isinstance(outcome, TidemillError)]

    async def _all_sent(self) -> None:
        async with asyncio.timeout(RECOVERY_S):
            await asyncio.gather(*self._sending)
        self._sending.clear()

    async def _start(self, place: str) -> None:
        schedule = self.schedule
        environment = {
            "KAFKA__BOOTSTRAP": self.settings.bootstrap,
            "KAFKA__TOPIC_PREFIX": self.settings.topic_prefix,
            **self._redis.environment,
            "PROJECT": self.project,
            "ROLES": "online",
            "BATCH_RECORDS": str(schedule.batch_records),
            "SESSION_MS": str(SESSION_MS),
            "TEST_HOP_DELAY_MS": str(schedule.hop_delay_ms),
            "TEST_SEED": str(schedule.seed),
            "LOG_FORMAT": "json",
            **({"KAFKA__INSTANCE": place} if schedule.named or place == ARCHIVER else {}),
        }
        if place == ARCHIVER:
            assert self._offline is not None
            environment |= self._offline.environment
        self._started += 1
        output = self._folder / f"worker-{self._started}{place}.log"
        named = {f"TIDEMILL_FEATURE_{name}": value for name, value in environment.items()}
        worker = self._workers[place] = Worker(self._nursery, named, output)
        self._background.add(asyncio.create_task(self._supervise(place, worker)))

    async def _supervise(self, place: str, worker: Worker) -> None:
        """Start a worker again that gave its name up, as a supervisor does; any other end of its own is wrong.

        One that froze before it laid its claim wakes up as the later of the two.
        """
        await asyncio.shield(worker.ended)
        if self._workers.get(place) is not worker:
            return
        if "another process has taken over" in worker.written():
            await self._start(place)
        else:
            self._crashes.append(f"worker {place} ended by itself with code {worker.ended.result()}")

    async def _ended(self, worker: Worker) -> int:
        async with asyncio.timeout(RECOVERY_S):
            return await asyncio.shield(worker.ended)

    def _stream(self, name: str) -> definition.Stream:
        """Return a stream as it is registered now."""
        return self._definitions[name][-1]

    @property
    def _streams(self) -> list[definition.Stream]:
        """The streams that have views by now."""
        names = {view.stream for view in self.schedule.shape.views[: self._registered]}
        return [self._stream(stream.name) for stream in self.schedule.shape.streams if stream.name in names]

    async def _folded(self) -> None:
        """Wait until the checkpoints are at the log's end, whoever writes them."""
        async with Log(self.settings) as log:
            ends = {stream.name: await log.ends(events_topic(stream.name)) for stream in self._streams}

        async def covered() -> bool:
            held = {name: await self._checkpoints(name, len(places)) for name, places in ends.items()}
            return held == ends

        await aeventually(covered, RECOVERY_S, claim=f"checkpoints at {ends}", tolerate=(Retryable,))

    async def _archived(self) -> None:
        """Wait until the tables hold everything, where something is archived."""
        if (offline := self._offline) is None:
            return
        async with Log(self.settings) as log:
            ends = {stream.name: await log.ends(events_topic(stream.name)) for stream in self._streams}

        async def covered() -> bool:
            return await asyncio.to_thread(offline.reached, ends)

        await aeventually(covered, RECOVERY_S, claim=f"tables up to {ends}", tolerate=(Retryable,))

    async def _checkpoints(self, stream: str, count: int) -> dict[int, int]:
        keys = [checkpoint_key(self.project, GROUP, events_topic(stream), number) for number in range(count)]
        points = [Checkpoint.unpack(raw) if raw else None for raw in await self._redis.client.mget(keys)]
        topic = events_topic(stream)
        topic_id = (await self._look.topics([topic]))[topic].id
        # What was folded from a log that is gone may have come as far by chance.
        return {n: point.next_offset if point and point.topic_id == topic_id else 0 for n, point in enumerate(points)}

    async def _recovered(self) -> None:
        """Let everything come back, and check what must hold."""
        await self._all_sent()
        if not self._workers.keys() - {ARCHIVER}:
            await self._start("z")
        if self._zombies:
            # One that woke up does its harm, or ends.
            await asyncio.wait([worker.ended for worker in self._zombies], timeout=5)
        await self._folded()
        await self._archived()
        if "redrive" in self.schedule.faults:
            await self._nothing_left()
        await self._check()
        if self._crashes:
            raise WrongError("; ".join(self._crashes))

    async def _nothing_left(self) -> None:
        """Redrive until nothing can be: who did not know yet what is allowed now refused some of it again."""

        async def none_left() -> bool:
            await self._redriving.at_once(1)
            await self._folded()
            await self._archived()
            return not await self._redriving.left()

        await aeventually(none_left, RECOVERY_S, claim="all dead letters that can be are sent again")

    async def _check(self) -> None:
        logs, ends = [], []
        async with Log(self.settings) as log:
            for stream in self._streams:
                topic = events_topic(stream.name)
                records, letters = await log.records(topic), await log.records(dead_letter_topic(topic))
                logs.append(StreamLog.read(self._definitions[stream.name], records, letters))
                check_letters(logs[-1], recreated=stream.name in self._recreated)
                places = await log.ends(topic)
                ends += [
                    progress.TopicPartitionOffset(topic=topic, partition=n, next_offset=e) for n, e in places.items()
                ]
                await self._check_positions(log, stream, places)
        instants = moments(self.schedule.seed, self._producing.times)
        registered = self.schedule.shape.views[: self._registered]
        views = [(view, log) for log in logs for view in registered if view.stream == log.stream.name]
        for place in list(self._workers):

            async def answered(place: str = place) -> bool:
                # One that gives its name up to another while it is asked has a successor.
                return await check_served(self._workers[place], views, ends, instants)

            await aeventually(answered, RECOVERY_S, claim=f"worker {place} answers", tolerate=())
        if self._offline is not None:
            await asyncio.to_thread(self._check_offline, self._offline, logs, views, instants)

    def _check_offline(
        self, offline: OfflineLog, logs: Iterable[StreamLog], views: Iterable[tuple[Any, StreamLog]], at: Sequence[int]
    ) -> None:
        for log in logs:
            offline.check_rows(log)
        for view, log in views:
            offline.check_view(view, log, at)

    async def _check_positions(self, log: Log, stream: definition.Stream, ends: Mapping[int, int]) -> None:
        """Check that checkpoints, and then committed offsets, are at the log's end and never beyond."""
        checkpoints = await self._checkpoints(stream.name, len(ends))
        topic = events_topic(stream.name)
        if checkpoints != ends:
            raise WrongError(f"checkpoints of {topic} at {checkpoints}, the log ends at {ends}")

        async def committed() -> bool:
            found = await log.committed(topic, GROUP)
            beyond = {n: o for n, o in found.items() if o > ends[n]}
            if beyond:
                raise WrongError(f"offsets of {topic} committed beyond the log's end: {beyond} > {ends}")
            return found == {number: end for number, end in ends.items() if end}

        await aeventually(committed, 20, claim=f"committed offsets of {topic} at {ends}", tolerate=())
