"""The offline role: a consumer group of its own that buffers records and commits them to Iceberg, exactly once.

It starts from the offsets that the tables hold, not from those that Kafka remembers: a commit whose answer was lost, or
a worker that was killed before its offsets were committed, is then seen for what it is.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic, time_ns
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import structlog
from sqlalchemy.exc import OperationalError
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.topics import events_topic
from tidemill_features.archive import OUTCOMES_TOPIC, PREDICTIONS_TOPIC, columns_of
from tidemill_features.iceberg import Archive, ArchiveMovedError, arrow_schema
from tidemill_features.upkeep import Upkeep
from tidemill_runtime.batches import Assignment, Batch, Fetch, Pipeline, Restored, Step
from tidemill_runtime.errors import Retryable, StateLost
from tidemill_runtime.positions import LostEnds, Offsets, Partition
from tidemill_runtime.retries import delays
from tidemill_runtime.topic_ids import TopicLook

from tidemill_feature import metrics
from tidemill_feature.adapters.column_fetch import column_fetch
from tidemill_feature.adapters.online_role import OnlineRole
from tidemill_feature.archiving import Buffer, Rows, Run, event_rows, outcome_rows, prediction_rows

P = ParamSpec("P")
R = TypeVar("R")

# How often it is looked, in about a second, whether the online role has come as far.
_LOOKS = 6

log = structlog.get_logger(__name__)


def archived_topics(catalogue: Catalogue) -> list[str]:
    """Return every topic that is archived: all registered streams, predictions and outcomes."""
    return [PREDICTIONS_TOPIC, OUTCOMES_TOPIC, *map(events_topic, sorted(catalogue.streams))]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is held back before a commit, and how often and how far each table is looked after."""

    buffer_bytes: int
    upkeep_every_s: float = 300.0
    upkeep: Upkeep = field(default_factory=Upkeep)


class ArchivePipeline(Pipeline[None, Batch]):
    """Buffers what the runner reads; one commit per table at each flush, and upkeep after one when it is time.

    Whether a record is an event is for the online role to say (ADR 0034); `online` is None where there is none. What
    is archived is of the topics that `look` finds (ADR 0040); None where no Kafka is.
    """

    keeps_offsets = True

    def __init__(
        self,
        dsn: str,
        warehouse: str,
        catalogue: Catalogue,
        limits: Limits,
        online: OnlineRole | None = None,
        look: TopicLook | None = None,
    ) -> None:
        self._dsn = dsn
        self._warehouse = warehouse
        self._catalogue = catalogue
        self._limits = limits
        self._online = online
        self._look = look
        # Of the topics, when it was last begun.
        self._ids: dict[str, bytes] = {}
        self._lost_ends = LostEnds()
        # By which rows are made: as of the last look.
        self._streams = dict(catalogue.streams)
        # Topics whose definition has changed since the online role's dead letters were looked up.
        self._changed: set[str] = set()
        self._start: Mapping[Partition, int] = {}
        self._buffer = Buffer(limits.buffer_bytes)
        self._archive: Archive | None = None
        self._topics: list[str] = []
        self._looked_after_s = monotonic()

    def fetch_from(self, consumer: Any) -> Fetch:
        # What waits for a commit stays the bytes that came: as objects it was a garbage collector's main work.
        return column_fetch(consumer)

    async def restore(self, assignment: Assignment) -> Restored[None]:
        self._buffer.clear()
        self._topics = sorted({place.topic for place in assignment.start})
        self._ids = await self._topic_ids(self._topics)
        offsets = await asyncio.to_thread(self._translated, self._offsets, self._topics)
        offsets |= await self._cut(assignment, offsets)
        self._streams = dict(self._catalogue.streams)
        self._start = {place: offsets.get(place, 0) for place in assignment.start}
        return Restored(None, self._start)

    async def _topic_ids(self, topics: Iterable[str]) -> dict[str, bytes]:
        found = {} if self._look is None else await self._look.topics(topics)
        return {name: topic.id for name, topic in found.items()}

    async def _cut(self, assignment: Assignment, offsets: Offsets) -> Offsets:
        """Let the tables end where the logs do, and return where that is of those that ended later.

        Where Kafka has lost the end of a log, other records come to those offsets.
        """
        lost = self._lost_ends.among(offsets, assignment.end)
        for topic in sorted({place.topic for place in lost}):
            ends = {place.number: end for place, end in lost.items() if place.topic == topic}
            rows = await asyncio.to_thread(self._translated, self._open().cut, topic, ends)
            metrics.archive_cut.labels(topic).inc(rows)
            log.error("the_log_lost_its_end", topic=topic, ends=ends, then=f"{rows} rows of its table are given up")
        return lost

    def step(self, state: None, batch: Batch, now_us: int) -> Step[None, Batch]:
        return Step(None, batch)

    async def apply(self, effects: Batch) -> None:
        if (back := self._buffer.behind(effects)) is not None:
            raise StateLost(f"{back.topic}[{back.number}]: its offsets went backwards")
        if self._buffer.full:
            await self.flush()
        # Last, since it is done once: what raises is tried again.
        self._buffer.add(effects if self._online is None else self._online.sieve.sift(effects))
        metrics.archive_buffered.set(self._buffer.rows)

    async def flush(self) -> None:
        # After everything that is buffered was read: what is appended is of the topic that it is taken for.
        known = {} if self._look is None else await self._look.known(self._ids)
        if replaced := sorted(name for name, topic in known.items() if topic.id != self._ids[name]):
            raise StateLost(f"{', '.join(replaced)} is another topic than before")
        if self._buffer.read:
            await self._append_all()

    async def close(self) -> None:
        """Give up connections."""
        if self._look is not None:
            await self._look.close()

    async def _append_all(self) -> None:
        """Append what is decided; wait a little, then let the runner wait, for the online role to decide the rest."""
        for delay_s in islice(delays(), _LOOKS):
            passed = await self._follow()
            await asyncio.to_thread(self._commit, passed)
            metrics.archive_buffered.set(self._buffer.rows)
            if not self._buffer.read:
                break
            await asyncio.sleep(delay_s)
        else:
            raise Retryable(f"{', '.join(self._buffer.topics())}: not decided by the online role yet")
        if monotonic() - self._looked_after_s >= self._limits.upkeep_every_s:
            await asyncio.to_thread(self._keep_up)
            self._looked_after_s = monotonic()

    async def _follow(self) -> Offsets:
        """Take in how far the online role is and by which definitions, and what it refused by those before.

        What a new definition would accept was refused for good where it lies (ADR 0016), and would be a row twice once
        it is sent again. So where a stream has changed, letters are looked up once the last by the old one is written.
        """
        topics = {events_topic(name): name for name in self._catalogue.streams}
        read = {place: end for place, (_, end) in self._buffer.read.items() if place.topic in topics}
        passed = await self._online.passed(read) if self._online is not None else {}
        # Of a stream that was retired there may still be records here.
        before, self._streams = self._streams, self._streams | self._catalogue.streams
        self._changed |= {events_topic(name) for name, old in before.items() if self._streams[name] != old}
        if not self._changed or self._online is None:
            return passed
        if any(passed.get(place, end) < end for place, end in read.items() if place.topic in self._changed):
            return passed
        start = {place: offset for place, offset in self._start.items() if place.topic in topics}
        await self._online.sieve.recall(start, {place: offset + 1 for place, offset in start.items()})
        self._changed.clear()
        self._buffer.sift(self._online.sieve.sift)
        return passed

    def _open(self) -> Archive:
        if self._archive is None:
            self._archive = Archive(self._dsn, self._warehouse)
        return self._archive

    def _offsets(self, topics: list[str]) -> dict[Partition, int]:
        archive = self._open()
        for topic, topic_id in self._ids.items():
            if (aside := archive.follow(topic, topic_id)) is not None:
                metrics.archive_set_aside.labels(topic).inc()
                log.error("the_log_is_another_one", topic=topic, then=f"its rows so far stay in the table {aside}")
        return {
            Partition(topic, number): offset for topic in topics for number, offset in archive.offsets(topic).items()
        }

    def _translated(self, call: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """Call, and raise `Retryable` while the catalogue or a file is away."""
        try:
            return call(*arguments, **named)
        except ArchiveMovedError as error:
            metrics.archive_conflicts.inc()
            raise StateLost(str(error)) from error
        except OperationalError as error:
            raise Retryable(f"PostgreSQL (Iceberg catalogue): {error.orig!r}") from error
        except OSError as error:
            raise Retryable(f"the offline log's files in {self._warehouse}: {error}") from error

    def _commit(self, passed: Offsets) -> None:
        """Append every topic of which all is decided, and forget what was appended."""
        for topic in self._buffer.topics():
            if topic in self._changed:
                continue
            read = {place.number: span for place, span in self._buffer.read.items() if place.topic == topic}
            rows = self._rows(topic, self._buffer.runs(topic))
            refused = {Partition(topic, one.record.partition): one.record.offset for one in rows.refused}
            if any(passed.get(place, offset + 1) <= offset for place, offset in refused.items()):
                continue
            try:
                self._append(topic, rows, read)
            except ArchiveMovedError as error:
                metrics.archive_conflicts.inc()
                raise StateLost(str(error)) from error
            except OperationalError as error:
                # Whether the commit happened is not known; the tables will tell.
                raise StateLost(f"PostgreSQL (Iceberg catalogue): {error.orig!r}") from error
            self._buffer.forget(topic)

    def _keep_up(self) -> None:
        for topic in self._topics:
            try:
                with metrics.archive_upkeep_seconds.time():
                    done = self._open().keep_up(topic, time_ns() // 1_000_000, self._limits.upkeep)
            except ArchiveMovedError:
                # Another writer was first; the table is looked after when it is time again.
                metrics.archive_conflicts.inc()
                continue
            except OperationalError as error:
                raise StateLost(f"PostgreSQL (Iceberg catalogue): {error.orig!r}") from error
            metrics.archive_merged.labels(topic).inc(done.merged_files)
            metrics.archive_expired.labels(topic).inc(done.expired_snapshots)
            metrics.archive_deleted.labels(topic).inc(done.deleted_files)

    def _append(self, topic: str, rows: Rows, read: Mapping[int, tuple[int, int]]) -> None:
        if rows.refused:
            metrics.archive_refused.labels(topic).inc(len(rows.refused))
        columns = columns_of(topic, self._streams)
        table = pa.table(rows.columns, schema=arrow_schema(columns))
        with metrics.archive_seconds.time():
            self._open().append(topic, columns, table, read)
        metrics.archive_rows.labels(topic).inc(len(rows))
        metrics.archive_commits.labels(topic).inc()

    def _rows(self, topic: str, runs: list[Run]) -> Rows:
        if topic == PREDICTIONS_TOPIC:
            return prediction_rows(runs)
        if topic == OUTCOMES_TOPIC:
            return outcome_rows(runs)
        stream = next(s for name, s in self._streams.items() if events_topic(name) == topic)
        return event_rows(stream, runs)
