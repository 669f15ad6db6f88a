"""Deletes what midnights have let go of, a page after each batch, so that joining goes on.

A page is a transaction of its own and takes the oldest that is left: it may end anywhere and be begun again. What a
recovery would read stays: a prediction or an outcome is kept while an outcome of that prediction is not known to be in
Kafka, and goes with a later midnight. A prediction that nobody has looked at for NEVER yet is kept too.
"""

from collections.abc import Mapping
from typing import Any

from tidemill_monitoring.adapters.findings import Retention

# Rows of one page: more than a batch of the default size adds.
PAGE = 10_000
_BEGINNING = -(2**62)

_NOTED = "SELECT pipeline, predictions_us, labels_us, outcomes_us FROM monitoring.retention"
# A plan made while a table is empty would sort all that is left for each page; so it reads by the index, in its order.
_BY_INDEX = "SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off"
# Each takes a pipeline, an instant to begin at, one to end before, and a number of rows; pipelines and sequence numbers
# are hidden from their indexes, see `store`.
_PREDICTIONS = """
WITH gone AS (
    DELETE FROM monitoring.prediction WHERE ctid = ANY(ARRAY(
        SELECT p.ctid FROM monitoring.prediction p
        WHERE p.pipeline || '' = $1 AND p.as_of_us >= $2 AND p.as_of_us < $3
            AND NOT EXISTS (
                SELECT FROM monitoring.outcome o
                WHERE o.pipeline = p.pipeline AND o.prediction_id = p.prediction_id
                    AND o.seq + 0 > (SELECT published_seq FROM monitoring.writer))
        ORDER BY p.as_of_us LIMIT $4))
    RETURNING as_of_us)
SELECT count(*), max(as_of_us) FROM gone
"""
_LABELS = """
WITH gone AS (
    DELETE FROM monitoring.label WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM monitoring.label
        WHERE pipeline || '' = $1 AND label_time_us >= $2 AND label_time_us < $3
        ORDER BY label_time_us LIMIT $4))
    RETURNING label_time_us)
SELECT count(*), max(label_time_us) FROM gone
"""
# Later revisions carry no tick and go with the first.
_OUTCOMES = """
WITH gone AS (
    DELETE FROM monitoring.outcome WHERE ctid = ANY(ARRAY(
        SELECT p.ctid FROM monitoring.outcome p
        WHERE p.pipeline || '' = $1 AND p.tick_us >= $2 AND p.tick_us < $3
            AND NOT EXISTS (
                SELECT FROM monitoring.outcome o
                WHERE o.pipeline = p.pipeline AND o.prediction_id = p.prediction_id
                    AND o.seq + 0 > (SELECT published_seq FROM monitoring.writer))
        ORDER BY p.tick_us LIMIT $4))
    RETURNING prediction_id, tick_us),
later AS (
    DELETE FROM monitoring.outcome WHERE ctid = ANY(ARRAY(
        SELECT later.ctid FROM gone CROSS JOIN LATERAL (
            SELECT o.ctid FROM monitoring.outcome o
            WHERE o.pipeline = $1 AND o.prediction_id = gone.prediction_id AND o.revision > 1 OFFSET 0) later)))
SELECT count(*), max(tick_us) FROM gone
"""
# In the order of `Retention`.
_PAGES = (_PREDICTIONS, _LABELS, _OUTCOMES)


class Forgetting:
    """What is still to be deleted; owned by the joiner."""

    def __init__(self) -> None:
        self._before: dict[str, Retention] = {}
        # Where the next page begins, by pipeline and table.
        self._due: dict[tuple[str, int], int] = {}

    async def look(self, connection: Any) -> None:
        """Take up what midnights have noted since the last look."""
        for row in await connection.fetch(_NOTED):
            pipeline, before = row[0], Retention(*row[1:])
            if self._before.get(pipeline) != before:
                self._before[pipeline] = before
                for table in range(len(_PAGES)):
                    self._due.setdefault((pipeline, table), _BEGINNING)

    @property
    def is_due(self) -> bool:
        """Say whether a page is left."""
        return bool(self._due)

    async def turn(self, connection: Any, swept_us: Mapping[str, int]) -> None:
        """Delete one page; the tables take turns.

        `swept_us`: by pipeline, up to which `as_of` predictions have been looked at for NEVER.
        """
        (pipeline, table), from_us = next(iter(self._due.items()))
        limits = self._before[pipeline]
        limits = limits._replace(predictions_us=min(limits.predictions_us, swept_us[pipeline]))
        async with connection.transaction():
            await connection.execute(_BY_INDEX)
            count, newest_us = await connection.fetchrow(_PAGES[table], pipeline, from_us, limits[table], PAGE)
        del self._due[pipeline, table]
        if count == PAGE:
            self._due[pipeline, table] = newest_us
