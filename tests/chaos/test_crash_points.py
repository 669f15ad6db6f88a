"""Workers with the service's own pipeline and store, over a log and a Redis in memory, stopped at any exchange.

Whoever is killed, frozen, cut off or overtaken, and whatever Redis forgets: in the end features equal brute force.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_redis import MemoryRedis
from oracle import MEANINGS, StreamLog, compare, computed
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic
from tidemill_feature.adapters import online_stream
from tidemill_feature.adapters.builder import NoHistory
from tidemill_feature.adapters.roles import online_pipeline
from tidemill_feature.registered import Definitions
from tidemill_feature.sizes import Sizes
from tidemill_features.layout import DEFAULT_GROUP, Checkpoint, checkpoint_key
from tidemill_features.reader import Lookup, Reader
from tidemill_runtime.batches import Assignment, Batch, Refused
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.topic_ids import Topic
from tidemill_testkit.ring_agreement import wanted_of
from workload import Producing, Shape, keys_of, moments, random_shape

PROJECT = "p"
# Exchanges that the last worker may need; one that needs more does not come to an end.
ENOUGH = 20_000


@dataclass(frozen=True)
class Logged:
    """A record as the consumer hands it over."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    key: bytes | None = None
    timestamp: int = 0


class World:
    """The log, Redis, what was registered, committed and refused."""

    def __init__(self, seed: int, count: int, batch: int, *, one_by_one: bool) -> None:
        chance = Random(seed)
        self.seed, self.batch, self.one_by_one = seed, batch, one_by_one
        # For how many batches a flush is put off while there is more to read.
        self.put_off = seed % 4
        self.shape: Shape = random_shape(chance, seed)
        self.redis = MemoryRedis()
        self.producing = Producing(seed, self.shape.streams)
        self.log: dict[Partition, list[Logged]] = {
            Partition(events_topic(stream.name), number): []
            for stream in self.shape.streams
            for number in range(stream.partitions)
        }
        for record in self.producing.records(count):
            assert record.partition is not None
            held = self.log[Partition(record.topic, record.partition)]
            held.append(Logged(record.topic, record.partition, len(held), record.value, record.headers))
        # Workers see the log grow.
        self.ends = {place: min(len(held), chance.randint(0, 8)) for place, held in self.log.items()}
        self.committed: dict[Partition, int] = {}
        self.letters: dict[tuple[str, int, int], bytes | None] = {}

    def defined(self) -> Definitions:
        """Return what a process knows that has read all definitions."""
        definitions = Definitions()
        for view in self.shape.views:
            stream = next(one for one in self.shape.streams if one.name == view.stream)
            closure = definition.Definition(streams=[stream], views=[view])
            record = definition.DefinitionRecord(kind="view", name=view.name, revision=1, definition=closure)
            definitions.fold(to_json(record))
        return definitions

    def grow(self, count: int) -> None:
        """Let the log have so many more records, by partition."""
        self.ends = {place: min(len(self.log[place]), end + count) for place, end in self.ends.items()}


class Topics:
    """What Kafka would say of the topics."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        prefix = KafkaSettings().topic_prefix
        counts = {events_topic(stream.name): stream.partitions for stream in self._world.shape.streams}
        return {name: Topic(name.encode()[-16:].rjust(16), counts[name.removeprefix(prefix)]) for name in names}

    async def close(self) -> None: ...


class Worker:
    """One process: the loop of the stream runner in short, stopped at every exchange."""

    def __init__(self, world: World, places: Sequence[Partition]) -> None:
        self._world = world
        self._places = places
        self._tokens: asyncio.Queue[bool] = asyncio.Queue()
        self._parked = self._dead = False
        self.idle = 0
        client = world.redis.client(self)
        sizes = Sizes(PROJECT, DEFAULT_GROUP, cache_bytes=1, batch_records=world.batch, join_records=10**6)
        self._pipeline, _ = online_pipeline(world.defined(), client, KafkaSettings(), sizes, NoHistory())
        # The one thing that would ask Kafka.
        setattr(self._pipeline, "_look", Topics(world))  # noqa: B010 -- of another type than the real one
        self._task = asyncio.create_task(self._run())

    async def gate(self) -> bool:
        if self._dead:
            # What the client would still tidy up; the dead do not.
            return False
        self._parked = True
        stands = await self._tokens.get()
        self._parked = False
        return stands

    async def let(self, exchanges: int, *, stands: bool = True) -> None:
        """Let it pass so many gates; the last one breaks its connection where `stands` is false."""
        for number in range(exchanges, 0, -1):
            while not self._parked:
                if self._task.done():
                    self._task.result()
                    return
                await asyncio.sleep(0)
            self._parked = False
            self._tokens.put_nowait(stands or number > 1)

    async def kill(self) -> None:
        """End it where it stands."""
        self._dead = True
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._hold()
            except Retryable:
                # Where the runner would try again, this begins again too, which is the harder case.
                self.idle = 0

    async def _hold(self) -> None:
        world, pipeline = self._world, self._pipeline
        start = {place: world.committed.get(place, 0) for place in self._places}
        assignment = Assignment(start, dict.fromkeys(start, 0), {place: world.ends[place] for place in start})
        restored = await pipeline.restore(assignment)
        state, at = restored.state, {**start, **restored.offsets}
        unwritten: list[Partition] = []
        batches = 0
        while True:
            await self.gate()
            batch = {p: world.log[p][at[p] : min(at[p] + world.batch, world.ends[p])] for p in self._places}
            batch = {place: records for place, records in batch.items() if records}
            if world.one_by_one:
                batch = dict(list(batch.items())[:1])
            self.idle = 0 if batch else self.idle + 1
            if batch:
                step = pipeline.step(state, Batch(batch), 0)
                await self.gate()
                self._refuse(step.refused)
                await pipeline.apply(step.effects)
                at |= Batch(batch).next_offsets
                unwritten += batch
                batches += 1
                if batches <= world.put_off and any(at[place] < world.ends[place] for place in self._places):
                    continue
            await pipeline.flush()
            if unwritten:
                await self.gate()
                world.committed |= {place: at[place] for place in unwritten}
                unwritten, batches = [], 0

    def _refuse(self, refused: Sequence[Refused]) -> None:
        for record, _ in refused:
            self._world.letters[record.topic, record.partition, record.offset] = record.value


class Act(NamedTuple):
    """What happens next: to which of two workers, and how much."""

    what: str
    worker: int
    much: int


ACTS = st.builds(
    Act,
    st.sampled_from(["go", "go", "go", "kill", "break", "swap", "share", "lose", "grow"]),
    st.integers(0, 1),
    st.integers(1, 40),
)


async def live(world: World, acts: Sequence[Act]) -> None:
    """Let two workers have their ways; whatever happens, both are gone at the end."""
    places = list(world.log)
    # They begin at different ends, so that they seldom meet at the same partition.
    workers = [Worker(world, places), Worker(world, places[::-1])]
    try:
        await act(world, workers, acts)
    finally:
        for worker in workers:
            await worker.kill()


async def act(world: World, workers: list[Worker], acts: Sequence[Act]) -> None:
    """Do what was drawn, then let the first worker, begun anew, finish."""
    places = list(world.log)
    for what, number, much in acts:
        if what == "go":
            await workers[number].let(much)
        elif what == "break":
            await workers[number].let(much % 5 + 1, stands=False)
        elif what == "lose":
            world.redis.lose(much // 4)
        elif what == "grow":
            world.grow(much // 4)
        else:
            # One is killed; or both, and each begins anew with all partitions, or with every other one.
            for fresh in [number] if what == "kill" else [0, 1]:
                await workers[fresh].kill()
                workers[fresh] = Worker(world, places[fresh::2] if what == "share" else places[:: 1 - 2 * fresh])
    await workers[0].kill()
    # The other one wakes up now and then as a zombie.
    workers[0] = Worker(world, places)
    world.grow(10**6)
    for _ in range(ENOUGH):
        await workers[0].let(5)
        if workers[0].idle >= 3:
            break
        if len(acts) % 3 == 0:
            await workers[1].let(1)
    else:
        pytest.fail("the last worker does not come to an end")


def check(world: World) -> None:
    """Compare every feature of every entity with brute force, and see that everything was taken in and refused."""
    for place, records in world.log.items():
        raw = world.redis.get(checkpoint_key(PROJECT, DEFAULT_GROUP, *place))
        assert (Checkpoint.unpack(raw).next_offset if raw else 0) == len(records), place
    reader = Reader(world.defined().plans.values(), project=PROJECT, group=DEFAULT_GROUP)
    for stream in world.shape.streams:
        topic = events_topic(stream.name)
        log = StreamLog.read(
            [stream], [record for place, held in world.log.items() if place.topic == topic for record in held]
        )
        found = {place[1:]: value for place, value in world.letters.items() if place[0] == topic}
        assert found == log.refused()
        for view in world.shape.views:
            if view.stream == stream.name:
                for as_of_us in moments(world.seed, world.producing.times):
                    check_view(world, reader, view, log, as_of_us)


def check_view(world: World, reader: Reader, view: definition.View, log: StreamLog, as_of_us: int) -> None:
    keys = keys_of(view)
    request = reader.request([Lookup(view.name, keys)])
    result = reader.values(request, [world.redis.get(key) for key in request.keys], as_of_us)
    assert not result.unready
    features = result.views[0].features
    wanted = wanted_of(view, log.stream, MEANINGS)
    for row, (key, want) in enumerate(zip(keys, log.answers(view, keys, as_of_us), strict=True)):
        compare(f"{view.name} as of {as_of_us}", key, wanted, computed(features, row), want)


GO = st.builds(Act, st.just("go"), st.integers(0, 1), st.integers(1, 60))
SEEDS, COUNTS, BATCHES = st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([1, 2, 5, 100])
IN_MEMORY = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker that has nothing to do looks each time, since no clock runs here.
    monkeypatch.setattr(online_stream, "_LOOK_S", 0.0)


@IN_MEMORY
@given(seed=SEEDS, count=COUNTS, batch=BATCHES, one_by_one=st.booleans(), acts=st.lists(ACTS, max_size=25))
def test_a_crash_between_any_two_exchanges_changes_no_feature(
    seed: int, count: int, batch: int, one_by_one: bool, acts: list[Act]
) -> None:
    world = World(seed, count, batch, one_by_one=one_by_one)
    asyncio.run(live(world, acts))
    check(world)


@IN_MEMORY
@given(seed=SEEDS, batch=BATCHES, acts=st.lists(GO, min_size=3, max_size=20))
def test_two_workers_that_hold_the_same_partitions_take_nothing_from_each_other(
    seed: int, batch: int, acts: list[Act]
) -> None:
    """Each writes to partitions that the other has not come to: what is refused for one must not be lost for all."""
    world = World(seed, 60, batch, one_by_one=True)
    asyncio.run(live(world, acts))
    check(world)
