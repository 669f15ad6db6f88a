"""The join in PostgreSQL: a handful of statements per batch, whatever its size.

Every statement takes arrays and unnests them; `connection` is the joiner's. Plans are made once, while tables are empty
and every index looks as good as another, so each look-up leaves the planner one index only: `+ 0` and `|| ''` hide a
column from the others, OFFSET 0 keeps a join from being turned around.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.producer import Outgoing

from tidemill_monitoring.decode import Label, Prediction
from tidemill_monitoring.evaluation import Resolved
from tidemill_monitoring.join import Last, Match, Outcome, Stored, Wait

PAGE = 20_000

# Stands alone, outside any transaction: read again, it changes nothing and finds the same labels as long as no outcome
# was made of them. So predictions cost one round trip, and their positions are saved with whatever is saved next.
_PREDICTIONS = """
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bytea[], $6::bytea[])
        WITH ORDINALITY AS g(pipeline, prediction_id, join_key, as_of_us, scores, record, n)),
fresh AS (
    INSERT INTO monitoring.prediction (pipeline, prediction_id, join_key, as_of_us, scores, record)
    SELECT pipeline, prediction_id, join_key, as_of_us, scores, record FROM given
    ON CONFLICT DO NOTHING RETURNING pipeline),
counted AS (
    UPDATE monitoring.pipeline p SET predictions = p.predictions + f.fresh
    FROM (SELECT pipeline, count(*) AS fresh FROM fresh GROUP BY pipeline) f WHERE p.pipeline = f.pipeline)
SELECT g.n, l.identity, l.value, l.label_time_us, l.ready_us
FROM given g CROSS JOIN LATERAL (
    SELECT * FROM monitoring.label l
    WHERE l.pipeline = g.pipeline AND l.join_key = g.join_key
        AND g.as_of_us BETWEEN l.earliest_us + 0 AND l.label_time_us + 0 OFFSET 0) l
WHERE NOT EXISTS (
    SELECT FROM monitoring.outcome o WHERE o.pipeline = g.pipeline AND o.prediction_id = g.prediction_id)
ORDER BY g.n, l.arrival LIMIT $7
"""

_LABELS = """
WITH fresh AS (
    INSERT INTO monitoring.label (pipeline, join_key, identity, value, label_time_us, ready_us, earliest_us)
    SELECT g.pipeline, g.join_key, g.identity, g.value, g.label_time_us, g.ready_us, g.earliest_us
    FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::bigint[], $6::bigint[], $7::bigint[])
        WITH ORDINALITY AS g(pipeline, join_key, identity, value, label_time_us, ready_us, earliest_us, n)
    ORDER BY g.n
    ON CONFLICT DO NOTHING
    RETURNING pipeline, join_key, identity, value, label_time_us, ready_us, earliest_us, arrival)
SELECT f.pipeline, f.join_key, f.identity, f.value, f.label_time_us, f.ready_us,
       p.prediction_id, p.as_of_us, p.scores, p.record, o.revision, o.label
FROM fresh f
CROSS JOIN LATERAL (
    SELECT p.pipeline, p.prediction_id, p.as_of_us, p.scores, p.record FROM monitoring.prediction p
    WHERE p.pipeline = f.pipeline AND p.join_key = f.join_key
        AND p.as_of_us + 0 BETWEEN f.earliest_us AND f.label_time_us OFFSET 0) p
LEFT JOIN LATERAL (
    SELECT o.revision, o.label FROM monitoring.outcome o
    WHERE o.pipeline = p.pipeline AND o.prediction_id = p.prediction_id
    ORDER BY o.revision DESC LIMIT 1) o ON true
ORDER BY f.arrival, p.prediction_id LIMIT $8
"""

# A label that is stored with the last page of its predictions: until then, those that have its value are done.
_LABEL_PAGE = """
WITH given AS (
    SELECT $1::text AS pipeline, $2::text AS join_key, $3::text AS identity, $4::float8 AS value,
           $5::bigint AS label_time_us, $6::bigint AS ready_us, $7::bigint AS earliest_us),
page AS MATERIALIZED (
    SELECT p.prediction_id, p.as_of_us, p.scores, p.record, o.revision, o.label
    FROM given g
    CROSS JOIN LATERAL (
        SELECT p.prediction_id, p.as_of_us, p.scores, p.record FROM monitoring.prediction p
        WHERE p.pipeline = g.pipeline AND p.join_key = g.join_key
            AND p.as_of_us + 0 BETWEEN g.earliest_us AND g.label_time_us OFFSET 0) p
    LEFT JOIN LATERAL (
        SELECT o.revision, o.label FROM monitoring.outcome o
        WHERE o.pipeline = g.pipeline AND o.prediction_id = p.prediction_id
        ORDER BY o.revision DESC LIMIT 1) o ON true
    WHERE o.label IS DISTINCT FROM g.value
    ORDER BY p.prediction_id LIMIT $8),
stored AS (
    INSERT INTO monitoring.label (pipeline, join_key, identity, value, label_time_us, ready_us, earliest_us)
    SELECT * FROM given WHERE (SELECT count(*) FROM page) < $8)
SELECT * FROM page ORDER BY prediction_id
"""

_OUTCOMES = """
INSERT INTO monitoring.outcome
    (pipeline, prediction_id, revision, state, label, label_time_us, tick_us, scores, seq)
SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::smallint[], $5::float8[], $6::bigint[], $7::bigint[],
                     $8::bytea[], $9::bigint[])
"""
OUTCOME_COLUMNS = 9

_OVERDUE = """
SELECT p.prediction_id, p.join_key, p.as_of_us, p.scores, p.record FROM monitoring.prediction p
WHERE p.pipeline || '' = $1 AND p.as_of_us >= $2 AND p.as_of_us < $3
  AND NOT EXISTS (SELECT FROM monitoring.outcome o WHERE o.pipeline = p.pipeline AND o.prediction_id = p.prediction_id)
ORDER BY p.as_of_us, p.prediction_id LIMIT $4
"""

_RESOLVED = """
SELECT tick_us, label_time_us, prediction_id, state, label, scores FROM monitoring.outcome
WHERE pipeline || '' = $1 AND tick_us <= $2 AND (tick_us, label_time_us, prediction_id) > ($3, $4, $5)
ORDER BY tick_us, label_time_us, prediction_id LIMIT $6
"""

_SAVE = """
WITH places AS (
    INSERT INTO monitoring.position (topic, partition, next_offset, newest_us)
    SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[])
    ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset,
        newest_us = coalesce(excluded.newest_us, position.newest_us)),
ends AS (
    INSERT INTO monitoring.published (topic, partition, next_offset)
    SELECT * FROM unnest($5::text[], $6::int[], $7::bigint[])
    ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset),
pipelines AS (
    INSERT INTO monitoring.pipeline AS p
        (pipeline, last_tick_us, swept_us, sweep_from_us, predictions, joined, never, corrected, champion_since_us)
    SELECT name, tick_us, swept_us, swept_us, predictions, joined, never, corrected, champion_since_us
    FROM unnest($8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
                $15::bigint[])
        AS g(name, tick_us, swept_us, predictions, joined, never, corrected, champion_since_us)
    ON CONFLICT (pipeline) DO UPDATE SET last_tick_us = excluded.last_tick_us,
        swept_us = excluded.swept_us, sweep_from_us = excluded.sweep_from_us,
        predictions = p.predictions + excluded.predictions, joined = p.joined + excluded.joined,
        never = p.never + excluded.never, corrected = p.corrected + excluded.corrected,
        champion_since_us = coalesce(p.champion_since_us, excluded.champion_since_us)),
sent AS (DELETE FROM monitoring.journal WHERE seq <= $17),
entries AS (
    INSERT INTO monitoring.journal (seq, topic, key, value, headers)
    SELECT * FROM unnest($18::bigint[], $19::text[], $20::bytea[], $21::bytea[], $22::jsonb[])),
outcomes AS (
    INSERT INTO monitoring.outcome
        (pipeline, prediction_id, revision, state, label, label_time_us, tick_us, scores, seq)
    SELECT * FROM unnest($23::text[], $24::text[], $25::int[], $26::smallint[], $27::float8[], $28::bigint[],
                         $29::bigint[], $30::bytea[], $31::bigint[]))
UPDATE monitoring.writer SET next_seq = $16, published_seq = $17
"""


class Numbered(NamedTuple):
    """An outcome with its order of publication and the evaluation it counts in (None: in none)."""

    seq: int
    tick_us: int | None
    outcome: Outcome

    def row(self) -> tuple[Any, ...]:
        """Return the row of the outcomes table."""
        one = self.outcome
        return (
            one.prediction.pipeline,
            one.prediction.prediction_id,
            one.revision,
            one.state,
            one.label,
            one.label_time_us,
            self.tick_us,
            one.prediction.scores,
            self.seq,
        )

    def resolved(self, tick_us: int) -> Resolved:
        """Return what the evaluation of a tick folds."""
        one = self.outcome
        prediction = one.prediction
        return Resolved(tick_us, one.label_time_us, prediction.prediction_id, one.state, one.label, prediction.scores)


class Counted(NamedTuple):
    """A pipeline's progress, and how many of what this batch added."""

    last_tick_us: int
    swept_us: int
    predictions: int = 0
    joined: int = 0
    never: int = 0
    corrected: int = 0
    champion_since_us: int | None = None


class Save(NamedTuple):
    """What one transaction leaves behind beside the rows of the join."""

    offsets: Offsets
    newest_us: Mapping[Partition, int]
    published: Offsets
    pipelines: Mapping[str, Counted]
    next_seq: int
    published_seq: int
    journal: Sequence[tuple[int, Outgoing]]
    outcomes: Sequence[Numbered]


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    found = [list(column) for column in zip(*rows, strict=True)]
    return found or [[] for _ in range(width)]


class TooManyError(Exception):
    """What is given belongs to more than a transaction takes; nothing may be committed of it."""


async def insert_predictions(connection: Any, given: Sequence[Prediction]) -> list[Match]:
    """Store predictions, each id once, and return all labels of those without an outcome, in the order of arrival.

    Raises `TooManyError` where these are more than a page; of a single prediction all are returned.
    """
    if not given:
        return []
    limit = None if len(given) == 1 else PAGE + 1
    rows = await connection.fetch(_PREDICTIONS, *_columns(given, 6), limit)
    if len(rows) == limit:
        raise TooManyError
    return [
        Match(Stored(*one), Label(one.pipeline, one.join_key, *row[1:5]), None)
        for row in rows
        for one in (given[row[0] - 1],)
    ]


async def insert_labels(connection: Any, given: Sequence[Label], waits: Mapping[str, Wait]) -> list[Match]:
    """Store label events that are new and return every prediction that they belong to, in the order of arrival.

    Raises `TooManyError` where these are more than a page.
    """
    if not given:
        return []
    rows = await connection.fetch(_LABELS, *_columns((_label_row(label, waits) for label in given), 7), PAGE + 1)
    if len(rows) > PAGE:
        raise TooManyError
    return [Match(Stored(row[0], row[6], row[1], *row[7:10]), Label(*row[:6]), _last(*row[10:])) for row in rows]


async def label_page(connection: Any, label: Label, waits: Mapping[str, Wait]) -> tuple[list[Match], bool]:
    """Return a page of the predictions of a new label that it changes, and whether that is the last.

    The next page begins behind what came of this one; the label is stored with the last.
    """
    rows = await connection.fetch(_LABEL_PAGE, *_label_row(label, waits), PAGE)
    found = [Match(Stored(label.pipeline, row[0], label.join_key, *row[1:4]), label, _last(*row[4:])) for row in rows]
    return found, len(rows) < PAGE


def _label_row(label: Label, waits: Mapping[str, Wait]) -> list[Any]:
    return [*label, label.label_time_us - waits[label.pipeline].us]


def _last(revision: int | None, label: float | None) -> Last | None:
    return None if revision is None else Last(revision, label)


async def insert_outcomes(connection: Any, given: Sequence[Numbered]) -> None:
    """Store outcomes before `save`, where the evaluation is to read them from the table."""
    await connection.execute(_OUTCOMES, *_columns((one.row() for one in given), OUTCOME_COLUMNS))


async def overdue(connection: Any, pipeline: str, from_us: int, to_us: int, limit: int) -> list[Stored]:
    """Return the first `limit` predictions asked in [from_us, to_us) that have no outcome."""
    rows = await connection.fetch(_OVERDUE, pipeline, from_us, to_us, limit)
    return [Stored(pipeline, *row) for row in rows]


async def resolved(
    connection: Any, pipeline: str, to_tick_us: int, after: tuple[int, int, str]
) -> tuple[list[Resolved], bool]:
    """Return a page of what counts in ticks up to `to_tick_us`, in order, and whether there is more."""
    rows = await connection.fetch(_RESOLVED, pipeline, to_tick_us, *after, PAGE)
    return [Resolved(*row) for row in rows], len(rows) == PAGE


async def save(connection: Any, left: Save) -> None:
    """Write positions, counters, journal and outcomes in one statement."""
    places = ((p.topic, p.number, offset, left.newest_us.get(p)) for p, offset in left.offsets.items())
    ends = ((p.topic, p.number, offset) for p, offset in left.published.items())
    pipelines = ((name, *counted) for name, counted in left.pipelines.items())
    journal = ((seq, one.topic, one.key, one.value, headers_json(one)) for seq, one in left.journal)
    await connection.execute(
        _SAVE,
        *_columns(places, 4),
        *_columns(ends, 3),
        *_columns(pipelines, 8),
        left.next_seq,
        left.published_seq,
        *_columns(journal, 5),
        *_columns((one.row() for one in left.outcomes), OUTCOME_COLUMNS),
    )


def headers_json(record: Outgoing) -> str:
    """Return a record's headers as text."""
    return json.dumps([[name, value.decode()] for name, value in record.headers])


def headers_of(text: str) -> list[tuple[str, bytes]]:
    """Return what `headers_json` wrote."""
    return [(name, value.encode()) for name, value in json.loads(text)]
