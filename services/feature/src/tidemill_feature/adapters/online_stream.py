"""The online role's consumer: loads the shards that a batch needs, folds, and flushes before offsets are committed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from time import monotonic, perf_counter, time_ns
from typing import Any

import structlog
from tidemill_contracts.topics import events_topic
from tidemill_features.admission import Admission
from tidemill_features.fold import Counts, ViewShards
from tidemill_features.plan import ViewPlan
from tidemill_runtime.batches import Assignment, Batch, Fetch, Pipeline, Restored, Step
from tidemill_runtime.errors import Retryable, StateLost
from tidemill_runtime.positions import LostEnds, Partition
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.topic_ids import Topic, TopicLook

from tidemill_feature import metrics
from tidemill_feature.adapters.builder import Builder
from tidemill_feature.adapters.building_site import Job
from tidemill_feature.adapters.column_fetch import column_fetch
from tidemill_feature.adapters.folding import fold
from tidemill_feature.adapters.redis_store import Move, RedisStore
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.building import Fault, Found, Start, start_partition
from tidemill_feature.decode import StreamDecoder
from tidemill_feature.online import OnlineState, PartitionState, StreamCounts, StreamState, Work, step
from tidemill_feature.registered import Definitions, RegisteredStream
from tidemill_feature.sizes import Sizes

# How often an idle worker looks whether Redis and the topics are still those that it knows.
_LOOK_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the pipeline keeps what: rings, those that are being built, and the book."""

    rings: RedisStore
    builds: RedisStore
    book: ViewBook


class OnlinePipeline(Pipeline[OnlineState, Work]):
    """Folds events into rings, and has views built that the rings do not hold yet."""

    keeps_offsets = True

    def __init__(
        self,
        definitions: Definitions,
        stores: Stores,
        builder: Builder,
        kafka: KafkaSettings,
        sizes: Sizes,
    ) -> None:
        self._definitions = definitions
        self._store, self._builds, self._book = stores.rings, stores.builds, stores.book
        self._builder = builder
        self._sizes = sizes
        self._look = TopicLook(kafka)
        self._state: OnlineState | None = None
        # Since the service started, over all assignments.
        self.streams: dict[str, StreamCounts] = {}
        self.views: dict[str, Counts] = {}
        self._topics: dict[str, Topic] = {}
        self._run_id = ""
        self._looked_s = 0.0
        # Partitions that took over what was built; its checkpoint goes once the partition's own says so.
        self._joined: set[Partition] = set()
        self._lost_ends = LostEnds()

    async def restore(self, assignment: Assignment) -> Restored[OnlineState]:
        """Begin where the checkpoints say; what Redis has lost is read again from the log."""
        self.released()
        names = {partition.topic.removeprefix("events.") for partition in assignment.start}
        if missing := names - self._definitions.streams().keys():
            raise Retryable(f"definitions of {', '.join(sorted(missing))} have not arrived yet")
        self._run_id = await self._store.run_id()
        self._topics = await self._asked(names)
        found = await self._found(assignment)
        await self._note_versions(found)
        revision, registered = self._definitions.revision, self._definitions.streams()
        starts = {
            partition: start_partition(
                registered[partition.topic.removeprefix("events.")], one, self._sizes.join_records
            )
            for partition, one in found.items()
        }
        await self._settle_points(found, starts)
        streams = self._streams({name: registered[name] for name in names}, starts.values())
        state = OnlineState(revision, streams, {partition: start.state for partition, start in starts.items()})
        self._state = state
        self._build(starts, found, registered)
        for partition, start in starts.items():
            _report_lost(partition, max(start.state.applied, start.state.seen), assignment.start[partition])
        return Restored(state, {partition: start.offset for partition, start in starts.items()})

    def fetch_from(self, consumer: Any) -> Fetch:
        return column_fetch(consumer)

    def released(self) -> None:
        self._state = None
        self._builder.stop()

    async def close(self) -> None:
        """Give up connections."""
        self._builder.stop()
        await self._look.close()

    async def _found(self, assignment: Assignment) -> dict[Partition, Found]:
        """Return what is known of each partition."""
        partitions = list(assignment.start)
        stored = await self._store.watch(partitions)
        built = await self._builds.checkpoints(partitions)
        found = {}
        for partition in partitions:
            topic, begin, end = self._topics[partition.topic], assignment.begin[partition], assignment.end[partition]
            found[partition] = Found(stored[partition], built[partition], topic.id, topic.partitions, begin, end)
        # Of a log that is another one nothing was read.
        read = {
            p: one.stored.next_offset for p, one in found.items() if one.stored and one.fault is not Fault.MADE_ANEW
        }
        self._lost_ends.among(read, assignment.end)
        return found

    async def _note_versions(self, found: Mapping[Partition, Found]) -> None:
        """Write into the book what is folded from now on, and take in what others wrote."""
        now_us = time_ns() // 1000
        definitions = self._definitions
        definitions.take(await self._book.read())
        new = {
            name: version
            for name, version in definitions.closures(now_us).items()
            if name not in definitions.book.versions
        }
        await self._book.add(new)
        registered = definitions.streams()
        for topic, known in self._topics.items():
            name = topic.removeprefix("events.")
            fault = max((one.fault for partition, one in found.items() if partition.topic == topic), default=Fault.NONE)
            if await self._book.follow(name, known.id, registered[name].plans, fault, now_us):
                metrics.topics_replaced.labels(name).inc()
                log.error("the_log_is_another_one", topic=topic, fault=fault.name, then="all its views are built anew")
        definitions.take(await self._book.read())

    async def _settle_points(self, found: Mapping[Partition, Found], starts: Mapping[Partition, Start]) -> None:
        """Write the checkpoints that readers must see at once; fence whoever still builds what is taken over."""
        moves = [Move(p, start.state.stored, start.point) for p, start in starts.items() if start.point is not None]
        if moves and await self._store.flush(moves, {}):
            raise StateLost("another worker has moved the rings on meanwhile")
        for move in moves:
            starts[move.partition].state.stored = move.next
        taken = {p: one.built for p, one in found.items() if one.built is not None and not starts[p].missing}
        self._joined = set(taken)
        if taken:
            await self._builds.watch(list(taken))
            fences = [Move(p, point, replace(point, ready_from=point.ready_from + 1)) for p, point in taken.items()]
            if await self._builds.flush(fences, {}):
                raise StateLost("another worker builds what is taken over")

    def _build(
        self,
        starts: Mapping[Partition, Start],
        found: Mapping[Partition, Found],
        registered: Mapping[str, RegisteredStream],
    ) -> None:
        """Have built what the rings do not hold yet."""
        jobs: list[Job] = []
        plans: dict[bytes, ViewPlan] = {}
        for partition, start in starts.items():
            if start.missing:
                stream, state = registered[partition.topic.removeprefix("events.")].stream, start.state
                live = _next_offset(state)
                jobs.append(Job(partition, stream, found[partition], frozenset(start.missing), live))
                plans.update(start.missing)
        capacity = self._capacity(plans.values())
        self._builder.start(jobs, lambda: {name: self._shards(plan, capacity) for name, plan in plans.items()})

    def step(self, state: OnlineState, batch: Batch, now_us: int) -> Step[OnlineState, Work]:
        done = step(state, batch)
        if done.refused and state.revision != self._definitions.revision:
            # Others may go by the new ones already, and would take for an event what is refused here.
            raise StateLost("streams, views or their builds have changed")
        return done

    async def apply(self, effects: Work) -> None:
        state = effects.state
        if (back := effects.backwards) is not None:
            raise StateLost(f"{back.topic}[{back.number}]: its offsets went backwards")
        async with self._builder.turn:
            if not effects.folded:
                await fold(self._store, effects.foldings, lambda partition: state.partitions[partition].topic_id)
                effects.folded = True
                state.unwritten.update(effects.partitions)
            if not state.has_room(self._sizes.batch_records):
                await self._write(state)

    async def _write(self, state: OnlineState) -> None:
        """Write what was folded, and how far."""
        began = perf_counter()
        moves = []
        for partition in sorted(state.unwritten):
            place = state.partitions[partition]
            moves.append(Move(partition, place.stored, place.checkpoint()))
        self._settle(state, await self._store.flush(moves, state.dirty()), moves)
        metrics.shards_written.inc(state.written())
        metrics.flush_seconds.observe(perf_counter() - began)

    async def flush(self) -> None:
        """Write what was folded, and look whether what it rests on is still so."""
        state = self._state
        if state is not None and state.unwritten:
            async with self._builder.turn:
                await self._write(state)
        if state is not None and state.revision != self._definitions.revision:
            raise StateLost("streams, views or their builds have changed")
        if self._builder.done:
            raise StateLost("views that were being built have caught up")
        if monotonic() - self._looked_s < _LOOK_S or state is None:
            return
        self._looked_s = monotonic()
        self._builder.check()
        self._report(state)
        await self._look_at_redis(state)
        await self._look_at_topics(state)
        await self._forget_joined(state)

    async def _look_at_redis(self, state: OnlineState) -> None:
        run_id = await self._store.run_id()
        if run_id == self._run_id:
            return
        held = await self._store.checkpoints(list(state.partitions))
        if any(held[partition] != place.stored for partition, place in state.partitions.items()):
            raise StateLost("Redis was restarted and has lost writes")
        log.info("redis_restarted_and_lost_nothing")
        self._run_id = run_id

    async def _look_at_topics(self, state: OnlineState) -> None:
        try:
            topics = await self._asked(state.streams)
        except Retryable as error:
            # The consumer meets the same and waits; so does a topic that is being made anew.
            log.info("topics_not_looked_at", error=str(error))
            return
        if replaced := [topic for topic, known in topics.items() if known.id != self._topics[topic].id]:
            raise StateLost(f"{', '.join(sorted(replaced))} is another topic than before")

    async def _forget_joined(self, state: OnlineState) -> None:
        """Give up the checkpoints of what was built, once the rings' own say the same."""
        over = [
            partition
            for partition in self._joined
            if (stored := state.partitions[partition].stored) is not None
            and state.partitions[partition].views <= stored.views
        ]
        await self._builds.forget(over)
        await self._book.reported(over)
        self._joined.difference_update(over)

    def _settle(self, state: OnlineState, found: Mapping[Partition, Any], moves: list[Move]) -> None:
        """Take note of what was written, or say why nothing was."""
        if not found:
            for move in moves:
                if move.next is not None:
                    state.partitions[move.partition].stored = move.next
            return
        metrics.flush_refused.inc()
        for move in moves:
            held, known = found[move.partition], move.held
            if held != known:
                ahead = held is not None and (known is None or held.next_offset > known.next_offset)
                why = "another worker has moved its rings on" if ahead else "Redis has lost writes"
                raise StateLost(f"{move.partition.topic}[{move.partition.number}]: {why}")
        # The checkpoints of all partitions are watched: the batch was not written, though its own are as they were.
        raise StateLost("another worker has moved the rings of other partitions on")

    async def _asked(self, streams: Iterable[str]) -> dict[str, Topic]:
        return await self._look.topics(map(events_topic, streams))

    def _streams(self, registered: Mapping[str, RegisteredStream], starts: Iterable[Start]) -> dict[str, StreamState]:
        live: dict[bytes, ViewPlan] = {}
        for start in starts:
            live.update(start.live)
        capacity = self._capacity(live.values())
        streams = {}
        for name, stream in registered.items():
            plans = {build: plan for build, plan in live.items() if plan.stream == name}
            streams[name] = StreamState(
                stream.stream,
                StreamDecoder(stream.stream),
                {build: self._shards(plan, capacity) for build, plan in plans.items()},
                tuple(sorted({column for plan in plans.values() for column in plan.columns})),
                self.streams.setdefault(name, StreamCounts()),
            )
        return streams

    def _capacity(self, plans: Iterable[ViewPlan]) -> int:
        per_shard = sum(plan.max_bytes_per_key for plan in plans)
        return max(10_000, self._sizes.cache_bytes // max(1, per_shard))

    def _shards(self, plan: ViewPlan, capacity: int) -> ViewShards:
        return ViewShards(plan, self._sizes.project, capacity, self.views.setdefault(plan.hash, Counts()))

    def _report(self, state: OnlineState) -> None:
        """Publish how much is held, and what became of records and events."""
        for name, stream in state.streams.items():
            for verdict in ("events", "duplicates", "late", "refused"):
                metrics.records.labels(name, verdict).set(getattr(stream.counts, verdict))
            for view in stream.shards.values():
                metrics.shards_held.labels(view.plan.name).set(len(view))
                for verdict in ("folded", "null_keys", "too_late", "overtaken"):
                    metrics.view_events.labels(view.plan.name, verdict).set(getattr(view.counts, verdict))
        held: dict[str, list[Admission]] = {}
        for partition, place in state.partitions.items():
            held.setdefault(partition.topic.removeprefix("events."), []).append(place.admission)
        for name, admissions in held.items():
            metrics.identities_held.labels(name).set(sum(one.identities for one in admissions))
            metrics.identities_cut_short.labels(name).set(sum(one.cut_short for one in admissions))


def _next_offset(state: PartitionState) -> Callable[[], int]:
    return lambda: state.next_offset


def _report_lost(partition: Partition, applied: int, committed: int) -> None:
    if applied < committed:
        metrics.replayed.inc(committed - applied)
        log.warning(
            "replaying_from_the_log", topic=partition.topic, partition=partition.number, records=committed - applied
        )
