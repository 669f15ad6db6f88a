"""The online role's consumer: loads the shards that a batch needs, folds, and flushes before offsets are committed."""

from collections.abc import Mapping
from time import monotonic, perf_counter
from typing import Any

import structlog
from tidemill_contracts.topics import events_topic
from tidemill_features.fold import Counts, Shard, ViewShards
from tidemill_features.layout import LayoutError
from tidemill_features.plan import ViewPlan
from tidemill_runtime.batches import Assignment, Batch, Pipeline, Restored, Step
from tidemill_runtime.errors import Fatal, Retryable, StateLost
from tidemill_runtime.positions import Partition
from tidemill_runtime.settings import KafkaSettings

from tidemill_feature import metrics
from tidemill_feature.adapters.redis_store import Move, RedisStore
from tidemill_feature.adapters.topic_ids import topic_ids
from tidemill_feature.decode import StreamDecoder
from tidemill_feature.online import Folding, OnlineState, StreamCounts, StreamState, Work, start_partition, step
from tidemill_feature.registered import Definitions, RegisteredStream

# How often an idle worker looks whether Redis is still the one that it knows.
_LOOK_S = 1.0

log = structlog.get_logger(__name__)


class OnlinePipeline(Pipeline[OnlineState, Work]):
    """Folds events into rings; `cache_bytes` bounds the shards in memory over all views."""

    def __init__(
        self, definitions: Definitions, store: RedisStore, kafka: KafkaSettings, project: str, cache_bytes: int
    ) -> None:
        self._definitions = definitions
        self._store = store
        self._kafka = kafka
        self._project = project
        self._cache_bytes = cache_bytes
        self._state: OnlineState | None = None
        # Since the service started, over all assignments.
        self.streams: dict[str, StreamCounts] = {}
        self.views: dict[str, Counts] = {}
        self._run_id = ""
        self._looked_s = 0.0

    async def restore(self, assignment: Assignment) -> Restored[OnlineState]:
        """Begin where the checkpoints say; what Redis has lost is read again from the log."""
        revision, registered = self._definitions.revision, self._definitions.streams()
        names = {partition.topic.removeprefix("events.") for partition in assignment.start}
        if missing := names - registered.keys():
            raise Retryable(f"definitions of {', '.join(sorted(missing))} have not arrived yet")
        self._run_id = await self._store.run_id()
        stored = await self._store.watch(list(assignment.start))
        ids = await self._topic_ids(names)
        streams = self._streams({name: registered[name] for name in names})
        state = OnlineState(revision, streams, {})
        offsets: dict[Partition, int] = {}
        for partition, committed in assignment.start.items():
            stream = registered[partition.topic.removeprefix("events.")]
            held = stored[partition]
            place, offset = start_partition(partition, stream, held, ids[partition.topic], assignment)
            state.partitions[partition] = place
            offsets[partition] = offset
            _report_lost(partition, place.applied, committed)
        self._state = state
        return Restored(state, offsets)

    def step(self, state: OnlineState, batch: Batch, now_us: int) -> Step[OnlineState, Work]:
        return step(state, batch)

    async def apply(self, effects: Work) -> None:
        if not effects.folded:
            await self._fold(effects)
            effects.folded = True
        began = perf_counter()
        state = effects.state
        moves = []
        for partition in effects.partitions:
            place = state.partitions[partition]
            moves.append(Move(partition, place.stored, place.checkpoint()))
        shards: dict[bytes, bytes] = {}
        touched = [view for folding in effects.foldings for view in folding.state.shards]
        for folding in effects.foldings:
            topic = events_topic(folding.state.stream.name)
            ends = {p.number: place.next_offset for p, place in state.partitions.items() if p.topic == topic}
            for view in folding.state.shards:
                shards |= view.dirty(ends)
        self._settle(state, await self._store.flush(moves, shards), moves)
        for view in touched:
            view.written()
        metrics.shards_written.inc(len(shards))
        metrics.flush_seconds.observe(perf_counter() - began)

    async def flush(self) -> None:
        """Everything applied is durable already; only look whether what it rests on is still so."""
        if self._state is not None and self._state.revision != self._definitions.revision:
            raise StateLost("streams or views were registered")
        if monotonic() - self._looked_s < _LOOK_S or self._state is None:
            return
        self._looked_s = monotonic()
        self._report(self._state)
        run_id = await self._store.run_id()
        if run_id == self._run_id:
            return
        partitions = self._state.partitions
        held = await self._store.checkpoints(list(partitions))
        if any(held[partition] != place.stored for partition, place in partitions.items()):
            raise StateLost("Redis was restarted and has lost writes")
        log.info("redis_restarted_and_lost_nothing")
        self._run_id = run_id

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
            if held is not None and held.topic_id != state.partitions[move.partition].topic_id:
                raise Fatal(f"{move.partition.topic} was re-created: its rings belong to another log")
            if held != known:
                ahead = held is not None and (known is None or held.next_offset > known.next_offset)
                why = "another worker has moved its rings on" if ahead else "Redis has lost writes"
                raise StateLost(f"{move.partition.topic}[{move.partition.number}]: {why}")

    async def _fold(self, work: Work) -> None:
        wanted: list[tuple[ViewShards, Shard, bytes]] = []
        entities: list[tuple[Folding, ViewShards, list[bytes | None]]] = []
        for folding in work.foldings:
            partitions = folding.events.partition.tolist()
            for view in folding.state.shards:
                found = view.entities(folding.events)
                entities.append((folding, view, found))
                shards = [Shard(p, e) for p, e in zip(partitions, found, strict=True) if e is not None]
                topic = events_topic(folding.state.stream.name)
                for shard in view.missing(shards):
                    topic_id = work.state.partitions[Partition(topic, shard.partition)].topic_id
                    wanted.append((view, shard, topic_id))
        await self._load(wanted)
        for folding, view, found in entities:
            view.fold(folding.events, found)

    async def _load(self, wanted: list[tuple[ViewShards, Shard, bytes]]) -> None:
        keys = [view.keys(shard) for view, shard, _ in wanted]
        raws = iter(await self._store.shards([key for found in keys for key in found]))
        try:
            for (view, shard, topic_id), found in zip(wanted, keys, strict=True):
                view.load(shard, [next(raws) for _ in found], topic_id)
        except LayoutError as error:
            raise Fatal(str(error)) from error
        metrics.shards_loaded.inc(len(wanted))

    async def _topic_ids(self, streams: set[str]) -> dict[str, bytes]:
        topics = {self._kafka.physical(events_topic(stream)): events_topic(stream) for stream in streams}
        found = await topic_ids(self._kafka.client_kwargs(), topics)
        return {topics[name]: topic_id for name, topic_id in found.items()}

    def _streams(self, registered: Mapping[str, RegisteredStream]) -> dict[str, StreamState]:
        per_shard = sum(plan.bytes_per_key for stream in registered.values() for plan in stream.plans)
        capacity = max(10_000, self._cache_bytes // max(1, per_shard))
        return {
            name: StreamState(
                stream.stream,
                StreamDecoder(stream.stream),
                [self._shards(plan, capacity) for plan in stream.plans],
                tuple(sorted({column for plan in stream.plans for column in plan.columns})),
                self.streams.setdefault(name, StreamCounts()),
            )
            for name, stream in registered.items()
        }

    def _shards(self, plan: ViewPlan, capacity: int) -> ViewShards:
        return ViewShards(plan, self._project, capacity, self.views.setdefault(plan.hash, Counts()))

    def _report(self, state: OnlineState) -> None:
        """Publish how much is held, and what became of records and events."""
        for name, stream in state.streams.items():
            for verdict in ("events", "duplicates", "late", "refused"):
                metrics.records.labels(name, verdict).set(getattr(stream.counts, verdict))
            for view in stream.shards:
                metrics.shards_held.labels(view.plan.name).set(len(view))
                for verdict in ("folded", "null_keys", "too_late"):
                    metrics.view_events.labels(view.plan.name, verdict).set(getattr(view.counts, verdict))
        held: dict[str, int] = {}
        for partition, place in state.partitions.items():
            name = partition.topic.removeprefix("events.")
            held[name] = held.get(name, 0) + place.admission.identities
        for name, count in held.items():
            metrics.identities_held.labels(name).set(count)


def _report_lost(partition: Partition, applied: int, committed: int) -> None:
    if applied < committed:
        metrics.replayed.inc(committed - applied)
        log.warning(
            "replaying_from_the_log", topic=partition.topic, partition=partition.number, records=committed - applied
        )
