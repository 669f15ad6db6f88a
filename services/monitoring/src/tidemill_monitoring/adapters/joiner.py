"""The hot path: one PostgreSQL transaction per batch, then Kafka.

    batch → step (pure) → predictions and labels in → outcomes → ticks → positions → commit → publish → forget a page

Positions and everything they led to commit together, so that a crash at any point resumes exactly there.
"""

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import structlog
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_runtime.batches import Assignment, Batch, Pipeline, Restored, Step
from tidemill_runtime.errors import Retryable, StateLost
from tidemill_runtime.positions import LostEnds, Partition
from tidemill_runtime.producer import Outgoing
from tidemill_runtime.progress import to_wire
from tidemill_runtime.topic_ids import TopicLook

from tidemill_monitoring import metrics, records
from tidemill_monitoring.adapters import store
from tidemill_monitoring.adapters.evaluator import Evaluator, Told, Watched
from tidemill_monitoring.adapters.forgetting import Forgetting
from tidemill_monitoring.adapters.journal import Journal, outcome_record
from tidemill_monitoring.adapters.leadership import Leadership
from tidemill_monitoring.adapters.store import Numbered
from tidemill_monitoring.adapters.wall import now_us
from tidemill_monitoring.board import Board, Decided
from tidemill_monitoring.clock import DAY_US, HOUR_US, EventTimes, spoken, tick_after
from tidemill_monitoring.decode import PREDICTIONS, Prediction
from tidemill_monitoring.gaps import Sequences
from tidemill_monitoring.join import (
    ASSUMED,
    CORRECTED,
    LABELLED,
    NEVER,
    Match,
    Outcome,
    Portion,
    outcomes_of,
    unlabelled,
)
from tidemill_monitoring.registered import Registered
from tidemill_monitoring.stepping import Effects, clocks_of, step

_BEGINNING = """
SELECT (SELECT min(tick_us) FROM monitoring.outcome WHERE pipeline = $1) AS tick_us,
       (SELECT min(as_of_us) FROM monitoring.prediction WHERE pipeline = $1) AS as_of_us,
       (SELECT count(*) FROM monitoring.prediction WHERE pipeline = $1) AS predictions,
       count(DISTINCT prediction_id) AS resolved,
       count(DISTINCT prediction_id) FILTER (WHERE label IS NOT NULL) AS joined,
       count(*) FILTER (WHERE state = 3) AS corrected
FROM monitoring.outcome WHERE pipeline = $1
"""
# What the release before has stored is a deadline; it becomes an instant of asking by the wait of now.
_PIPELINES = """
SELECT p.pipeline, p.last_tick_us, p.champion_since_us,
       coalesce(p.swept_us, p.sweep_from_us - coalesce(w.wait_us, 0)) AS sweep_from_us
FROM monitoring.pipeline p LEFT JOIN unnest($1::text[], $2::bigint[]) AS w(pipeline, wait_us) USING (pipeline)
"""
# The topics whose positions are of another one by now.
_MADE_ANEW = """
SELECT topic FROM monitoring.topic JOIN unnest($1::text[], $2::bytea[]) AS now(topic, id) USING (topic)
WHERE topic.id <> now.id
"""
_TOPICS = """
INSERT INTO monitoring.topic (topic, id) SELECT * FROM unnest($1::text[], $2::bytea[])
ON CONFLICT (topic) DO UPDATE SET id = excluded.id
"""
_MOVE = """
UPDATE monitoring.position SET next_offset = moved.next_offset
FROM unnest($1::text[], $2::int[], $3::bigint[]) AS moved(topic, partition, next_offset)
WHERE position.topic = moved.topic AND position.partition = moved.partition
"""
# How often it is looked whether the topics are still those that are read.
_LOOK_S = 5.0
# Records read without anything to save; more than these a restart should not have to read again.
_UNSAVED_LIMIT = 20_000
_STATES = {LABELLED: "labelled", NEVER: "never", CORRECTED: "corrected", ASSUMED: "assumed"}

log = structlog.get_logger(__name__)


class Joiner(Pipeline[EventTimes, Effects]):
    """Joins predictions with labels and evaluates what becomes of them; `boards` is shared with the policy."""

    keeps_offsets = True

    def __init__(
        self,
        leadership: Leadership,
        journal: Journal,
        registered: Registered,
        evaluator: Evaluator,
        look: TopicLook,
        *,
        idle_us: int = 0,
        lost_after_us: int = 60_000_000,
    ) -> None:
        self._leadership = leadership
        self._journal = journal
        self._registered = registered
        self._evaluator = evaluator
        self._look = look
        # Of the topics that are read, when that was last begun.
        self._ids: dict[str, bytes] = {}
        self._looked_s = 0.0
        self._lost_ends = LostEnds()
        self._idle_us = idle_us
        self._lost_after_us = lost_after_us
        self.boards: dict[str, Board] = {}
        self.clocks: dict[str, int] = {}
        # What was read so far; None before the first assignment.
        self.times: EventTimes | None = None
        self._watched: dict[str, Watched] = {}
        self._offsets: dict[Partition, int] = {}
        self._noted: dict[Partition, int] = {}
        self._moved: list[str] = []
        self._sequences = Sequences({}, lost_after_us)
        self._forgetting = Forgetting()
        # The days, by pipeline, whose midnights have been looked at for what they let go of.
        self._days: set[tuple[str, int]] = set()
        # Read since the last transaction: saved with the next, read again after a crash.
        self._unsaved: dict[Partition, int] = {}
        self._unsaved_us: dict[Partition, int] = {}
        self._unsaved_rows = 0

    async def restore(self, assignment: Assignment) -> Restored[EventTimes]:
        """Read everything from PostgreSQL; the group's committed offsets do not count beside the positions there."""
        await self._journal.published()
        await self._leadership.renew()
        found = await self._look.topics({place.topic for place in assignment.start})
        self._ids, self._looked_s = {name: topic.id for name, topic in found.items()}, monotonic()
        async with self._leadership.transaction() as connection:
            await self._follow_logs(connection, assignment)
            rows = await connection.fetch("SELECT topic, partition, next_offset, newest_us FROM monitoring.position")
            await self._journal.recover(connection)
            await self._load(connection)
        self._unsaved, self._unsaved_us, self._unsaved_rows = {}, {}, 0
        self._noted = {}
        ends = {place: end for place, end in assignment.end.items() if place.topic == PREDICTIONS}
        self._sequences = Sequences(ends, self._lost_after_us)
        self._offsets = {Partition(row["topic"], row["partition"]): row["next_offset"] for row in rows}
        newest = {
            Partition(row["topic"], row["partition"]): row["newest_us"] for row in rows if row["newest_us"] is not None
        }
        times = EventTimes(newest, whole=spoken(newest, self._told_topics()), idle_us=self._idle_us, now_us=now_us())
        self.times = times
        self.clocks = clocks_of(times, self._registered, now_us())
        self._moved = list(self.clocks)
        self._publish()
        times.hold(
            {
                partition: end
                for partition, end in assignment.end.items()
                if (partition.topic == PREDICTIONS or times.added(partition))
                # What Kafka has deleted meanwhile never comes.
                and max(self._offsets.get(partition, 0), assignment.begin[partition]) < end
            }
        )
        # A partition that was never read starts at the log's beginning, whatever a group of this name once committed.
        return Restored(times, {**assignment.begin, **self._offsets})

    async def _follow_logs(self, connection: Any, assignment: Assignment) -> None:
        """Move positions of logs that are others by now: to the beginning, or to the end that Kafka has not lost.

        What is read a second time changes nothing.
        """
        ids = [list(self._ids), list(self._ids.values())]
        anew = {row["topic"] for row in await connection.fetch(_MADE_ANEW, *ids)}
        held = await connection.fetch("SELECT topic, partition, next_offset FROM monitoring.position")
        read = {Partition(row["topic"], row["partition"]): row["next_offset"] for row in held}
        moved = {place: 0 for place in read if place.topic in anew}
        lost = self._lost_ends.among({place: at for place, at in read.items() if place not in moved}, assignment.end)
        for topic in sorted(anew | {place.topic for place in lost}):
            log.error("the_log_is_another_one", topic=topic, then="it is read from where it was not read before")
        places = [(*place, at) for place, at in {**moved, **lost}.items()]
        if places:
            await connection.execute(_MOVE, *map(list, zip(*places, strict=True)))
        await connection.execute(_TOPICS, *ids)

    async def flush(self) -> None:
        """Look now and then whether the topics are still those that are read. Raises `StateLost` where one is not."""
        if monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s = monotonic()
        try:
            known = await self._look.known(self._ids)
        except Retryable as error:
            # The consumer meets the same and waits.
            log.info("topics_not_looked_at", error=str(error))
            return
        if replaced := sorted(name for name, topic in known.items() if topic.id != self._ids[name]):
            raise StateLost(f"{', '.join(replaced)} is another topic than before")

    def _told_topics(self) -> set[str]:
        """Return the topics of pipelines that have had a clock: all partitions that there were then had spoken."""
        known = self._watched.keys() & set(self._registered.pipelines())
        return {partition.topic for name in known for partition in self._registered.partitions(name)}

    async def _load(self, connection: Any) -> None:
        decided = await connection.fetch(
            "SELECT pipeline, cause_kind, cause_id, outcome, event_time_us, due_us FROM monitoring.decision"
        )
        self.boards.clear()
        for row in decided:
            self.board(row["pipeline"]).note(Decided(*row[1:]))
        self._watched = {}
        waits = self._registered.waits
        for row in await connection.fetch(_PIPELINES, list(waits), [wait.us for wait in waits.values()]):
            name = row["pipeline"]
            if row["champion_since_us"] is not None:
                self._registered.champion_since_us[name] = row["champion_since_us"]
            self._watched[name] = await self._evaluator.load(connection, name, row, self.board(name))
        self._forgetting = Forgetting()
        await self._forgetting.look(connection)

    def board(self, pipeline: str) -> Board:
        """Return what the policy has decided for a pipeline."""
        return self.boards.setdefault(pipeline, Board())

    def positions(self, pipeline: str) -> records.Positions:
        """Return how far the pipeline's streams and the predictions are joined."""
        read = {*self._registered.partitions(pipeline)}
        return to_wire({p: o for p, o in self._offsets.items() if p in read or p.topic == PREDICTIONS})

    def step(self, state: EventTimes, batch: Batch, now_us: int) -> Step[EventTimes, Effects]:
        """Decode; see `stepping`."""
        return step(state, batch, now_us, self._registered)

    async def apply(self, effects: Effects) -> None:
        """Commit a batch and begin to publish it. Raises `StateLost` where PostgreSQL went away, `Fatal` for Kafka."""
        await self._commit(effects)
        await self._journal.published()
        self._publish(self._lost(effects))
        await self._forget()

    async def _forget(self) -> None:
        if self._forgetting.is_due:
            swept_us = {name: watched.sweep_from_us for name, watched in self._watched.items()}
            async with self._leadership.connection() as connection:
                await self._forgetting.turn(connection, swept_us)

    def _lost(self, effects: Effects) -> list[Outgoing]:
        """Count predictions whose log record never came, and return what operators are told of them."""
        self._sequences.note(effects.logged, effects.now_us)
        found = []
        for lost in self._sequences.lost(effects.now_us):
            metrics.lost.inc(lost.records)
            alert = records.lost_alert(lost, effects.now_us)
            found.append(records.outgoing(records.ALERTS, lost.process_id, alert, alert.alert_id))
        return found

    def _publish(self, alerts: Sequence[Outgoing] = ()) -> None:
        moved, self._moved = self._moved, []
        told = [*alerts, *(self._clock_record(name) for name in moved)]
        self._journal.publish(told, max(self.clocks.values(), default=0))

    def _clock_record(self, pipeline: str) -> Outgoing:
        clock = monitoring.ClockRecord(
            pipeline=pipeline,
            event_time=to_timestamp(self.clocks[pipeline]),
            positions=self.positions(pipeline),
            emitted_at=to_timestamp(now_us()),
        )
        return records.outgoing(records.CLOCK, pipeline, clock, f"{pipeline}/{self.clocks[pipeline]}")

    async def _commit(self, effects: Effects) -> None:
        """Make a batch's effects durable; one that neither joins nor passes a tick leaves only predictions behind."""
        self._offsets.update(effects.offsets)
        self._unsaved.update(effects.offsets)
        self._unsaved_us.update(effects.newest_us)
        self._unsaved_rows += effects.records
        passing = self._passing(effects)
        todo = [Portion(effects.predictions, effects.labels)]
        while todo:
            portion = todo.pop(0)
            try:
                todo[:0] = await self._take(portion, passing if portion.last else {}, effects.now_us)
            except store.TooManyError:
                todo[:0] = portion.smaller()
            if todo:
                await self._journal.published()
                self._journal.publish()
                await self._journal.published()

    async def _take(self, portion: Portion, passing: Mapping[str, int], now_us: int) -> list[Portion]:
        """Commit a portion and return what is left of it. Raises `TooManyError`, and then nothing is committed."""
        matches = await self._predictions(portion.predictions)
        if not (matches or portion.labels or passing or (portion.last and self._unsaved_rows > _UNSAVED_LIMIT)):
            return []
        async with self._leadership.transaction() as connection:
            numbered, left = await self._write(connection, matches, portion, passing, now_us)
            days = {(name, to_tick_us // DAY_US) for name, to_tick_us in passing.items()}
            if not left and not days <= self._days:
                self._days = days
                await self._forgetting.look(connection)
        self._journal.append(numbered)
        if portion.last and not left:
            self._unsaved, self._unsaved_us, self._unsaved_rows = {}, {}, 0
        return left

    async def _predictions(self, given: Sequence[Prediction]) -> list[Match]:
        """Store predictions; one that is older than what was swept as overdue has the sweep look again."""
        waits = self._registered.waits
        for one in given:
            watched = self._watched.get(one.pipeline)
            if watched is not None and one.pipeline in waits:
                watched.sweep_from_us = min(watched.sweep_from_us, one.as_of_us)
        async with self._leadership.connection() as connection:
            matches = await store.insert_predictions(connection, given)
        # One of a pipeline that was retired before the start may still come to a label that waited for it.
        return [match for match in matches if match.prediction.pipeline in waits]

    async def _write(
        self,
        connection: Any,
        matches: Sequence[Match],
        portion: Portion,
        passing: Mapping[str, int],
        now_us: int,
    ) -> tuple[list[tuple[int, Outgoing]], list[Portion]]:
        """Return what is to be published, and what is left of the portion: the ticks and the positions wait for it."""
        waits = self._registered.waits
        counted = {name: _Counts() for name in waits}
        labelled, left = await self._labels(connection, portion)
        due = {} if left else passing
        # Together, since outcomes are written last: a label must see what an earlier one of its batch made.
        outcomes = outcomes_of([*matches, *labelled], waits)
        for name, to_tick_us in due.items():
            if name not in self._watched:
                begun = min([to_tick_us, *_first_ticks(name, outcomes)])
                self._watched[name] = await self._begin(connection, name, begun, counted[name])
        late, swept = await self._sweep(connection, due, outcomes)
        if not swept:
            left = [Portion((), (), portion.last)]
        numbered = self._number(outcomes + late, counted)
        ended = {} if left else due
        early = any(self._watched[name].pending is None for name in ended)
        if early:
            await store.insert_outcomes(connection, numbered)
        told = await self._evaluate(connection, ended, now_us)
        journal = list(zip(self._journal.number(len(told)), told, strict=True))
        whole = portion.last and not left
        await self._save(connection, counted, journal, () if early else numbered, whole=whole)
        return [*((one.seq, outcome_record(one.outcome)) for one in numbered), *journal], left

    async def _labels(self, connection: Any, portion: Portion) -> tuple[list[Match], list[Portion]]:
        """Store a portion's labels and return what they belong to; of a paged one a page, and what is left of it."""
        waits = self._registered.waits
        if not portion.paged:
            return await store.insert_labels(connection, portion.labels, waits), []
        found, whole = await store.label_page(connection, portion.labels[0], waits)
        return found, [] if whole else [portion]

    def _number(self, outcomes: Sequence[Outcome], counted: "Mapping[str, _Counts]") -> list[Numbered]:
        """Give outcomes their order and their tick, and hold those that a tick will fold."""
        made = []
        for seq, one in zip(self._journal.number(len(outcomes)), outcomes, strict=True):
            pipeline = one.prediction.pipeline
            counted[pipeline].count(one)
            found = Numbered(seq, self._tick_of(one), one)
            made.append(found)
            watched = self._watched.get(pipeline)
            if watched is not None and found.tick_us is not None:
                watched.expect(found.resolved(found.tick_us))
        return made

    def _passing(self, effects: Effects) -> dict[str, int]:
        """Return, for pipelines whose clock has passed a tick, the last such tick."""
        passing = {}
        for name, clock_us in effects.clocks.items():
            if clock_us <= self.clocks.get(name, -1):
                continue
            self.clocks[name] = clock_us
            self._moved.append(name)
            last_us = tick_after(clock_us) - HOUR_US
            watched = self._watched.get(name)
            if watched is None or last_us > watched.last_tick_us:
                passing[name] = last_us
        return passing

    async def _sweep(
        self, connection: Any, passing: Mapping[str, int], joined: Sequence[Outcome]
    ) -> tuple[list[Outcome], bool]:
        """Give up on labels that were waited for long enough, a page at most; return it, and whether that is all."""
        done = {(one.prediction.pipeline, one.prediction.prediction_id) for one in joined}
        found: list[Outcome] = []
        room = store.PAGE
        for name, to_tick_us in passing.items():
            watched, wait = self._watched[name], self._registered.waits[name]
            # By the time of asking, which stays what it was when a definition changes the wait.
            late = await store.overdue(connection, name, watched.sweep_from_us, to_tick_us - wait.us, room)
            found += [unlabelled(one, wait) for one in late if (name, one.prediction_id) not in done]
            room -= len(late)
            if not room:
                watched.sweep_from_us = late[-1].as_of_us
                return found, False
            watched.sweep_from_us = max(watched.sweep_from_us, to_tick_us - wait.us)
        return found, True

    async def _begin(self, connection: Any, pipeline: str, to_tick_us: int, counts: "_Counts") -> Watched:
        """Begin a pipeline at its first clock: at the oldest thing that waits for it, with what came before counted."""
        first = await connection.fetchrow(_BEGINNING, pipeline)
        counts.predictions, counts.joined, counts.corrected = first["predictions"], first["joined"], first["corrected"]
        counts.never = first["resolved"] - first["joined"]
        tick_us, as_of_us = first["tick_us"], first["as_of_us"]
        swept_us = to_tick_us - self._registered.waits[pipeline].us
        return self._evaluator.begin(
            to_tick_us if tick_us is None else min(to_tick_us, tick_us - HOUR_US),
            swept_us if as_of_us is None else min(swept_us, as_of_us),
            self.board(pipeline),
        )

    def _tick_of(self, outcome: Outcome) -> int | None:
        if outcome.revision != 1:
            return None
        tick_us = tick_after(outcome.ready_us)
        watched = self._watched.get(outcome.prediction.pipeline)
        return tick_us if watched is None else max(tick_us, watched.last_tick_us + HOUR_US)

    async def _evaluate(self, connection: Any, passing: Mapping[str, int], now_us: int) -> list[Outgoing]:
        out: list[Outgoing] = []
        for name, to_tick_us in passing.items():
            told = Told(now_us, self.positions(name))
            await self._evaluator.advance(connection, name, self._watched[name], to_tick_us, told)
            out += told.out
        return out

    async def _save(
        self,
        connection: Any,
        counted: "Mapping[str, _Counts]",
        journal: Sequence[tuple[int, Outgoing]],
        numbered: Sequence[Numbered],
        *,
        whole: bool,
    ) -> None:
        since = self._registered.champion_since_us
        pipelines = {
            name: store.Counted(watched.last_tick_us, watched.sweep_from_us, *counted[name].values(), since.get(name))
            for name, watched in self._watched.items()
            if name in counted
        }
        # Taken at one instant with the number: nothing up to it lies behind these ends.
        written, standing = dict(self._journal.written), self._journal.standing
        ends = {p: end for p, end in written.items() if self._noted.get(p) != end}
        self._noted = written
        metrics.behind.set(standing.next_seq - 1 - standing.published_seq)
        left = store.Save(
            self._unsaved if whole else {},
            self._unsaved_us if whole else {},
            ends,
            pipelines,
            standing.next_seq,
            standing.published_seq,
            journal,
            numbered,
        )
        await store.save(connection, left)


def _first_ticks(pipeline: str, outcomes: Sequence[Outcome]) -> list[int]:
    """Return the ticks before those that a pipeline's outcomes count in."""
    return [
        tick_after(one.ready_us) - HOUR_US
        for one in outcomes
        if one.revision == 1 and one.prediction.pipeline == pipeline
    ]


class _Counts:
    """What one batch added to a pipeline's totals."""

    def __init__(self) -> None:
        # Predictions are counted where they are stored.
        self.predictions = self.joined = self.never = self.corrected = 0

    def count(self, outcome: Outcome) -> None:
        """Take in one outcome; a prediction whose label came after all is joined, no longer never."""
        metrics.outcomes.labels(_STATES[outcome.state]).inc()
        self.joined += outcome.first_label
        self.corrected += outcome.state == CORRECTED
        self.never += (outcome.state == NEVER) - (outcome.state == CORRECTED and outcome.first_label)

    def values(self) -> tuple[int, int, int, int]:
        """Return the totals in the order of the table."""
        return (self.predictions, self.joined, self.never, self.corrected)
