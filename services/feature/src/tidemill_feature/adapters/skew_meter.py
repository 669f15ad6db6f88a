"""Measures skew by itself: once a period of predictions is over, a sample of them is compared and reported."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time_ns

import structlog
from sqlalchemy.exc import OperationalError
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.feature.v1 import records_pb2 as records
from tidemill_features.iceberg import Archive
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.errors import Retryable
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.producer import Producer

from tidemill_feature import metrics
from tidemill_feature.adapters.skew_log import Sampling, SkewLog
from tidemill_feature.schemas import Schemas
from tidemill_feature.skew import Period, due
from tidemill_feature.skew_report import outgoing, skew_record

# FileNotFoundError: the log was compacted under a reading that took too long.
_AWAY = (OperationalError, FileNotFoundError, Retryable)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Schedule:
    """When to look: periods in event time, rounds never nearer than `pause_s`, a look every `look_s` (wall clock)."""

    every_us: int
    pause_s: float
    look_s: float


@dataclass(frozen=True)
class Place:
    """Where the offline log is, and what is registered."""

    dsn: str
    warehouse: str
    catalogue: Catalogue
    schemas: Schemas


@dataclass
class SkewMeter(Component):
    """A `Component`; `measures` says whether this instance is the one that does.

    Whatever is away is waited for: the period is measured later.
    """

    place: Place
    sampling: Sampling
    schedule: Schedule
    producer: Producer
    measures: Callable[[], bool]
    _done_us: int = 0
    _rested_s: float = 0.0
    _log: SkewLog | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Begin no further round."""
        self._stopping.set()

    async def run(self) -> None:
        """Measure until `stop`."""
        while not self._stopping.is_set():
            try:
                if self.measures() and monotonic() >= self._rested_s:
                    await self._round()
            except _AWAY as error:
                log.warning("skew_not_measured_yet", error=str(error))
            await sleep_unless(self._stopping, self.schedule.look_s)

    async def _round(self) -> None:
        newest_us = await asyncio.to_thread(lambda: self._opened().newest_us())
        period = due(newest_us, self._done_us, self.schedule.every_us)
        if period is None:
            return
        for pipeline in sorted(self.place.catalogue.pipelines):
            await self._measure(pipeline, period)
        self._done_us = period.until_us
        self._rested_s = monotonic() + self.schedule.pause_s

    async def _measure(self, pipeline: str, period: Period) -> None:
        try:
            with metrics.skew_seconds.time():
                record = await asyncio.to_thread(self._measured, pipeline, period)
        except _AWAY:
            raise
        # A measurement must not end what it measures, nor come again and again upon the same rows.
        except Exception:
            metrics.skew_failed.labels(pipeline).inc()
            log.exception("skew_not_measured", pipeline=pipeline, from_us=period.from_us, until_us=period.until_us)
            return
        if record is not None:
            await self.producer.send_all([outgoing(record)])
            _count(record)

    def _opened(self) -> SkewLog:
        if self._log is None:
            archive = Archive(self.place.dsn, self.place.warehouse)
            self._log = SkewLog(archive, self.place.catalogue, self.place.schemas, self.sampling)
        return self._log

    def _measured(self, pipeline: str, period: Period) -> records.SkewRecord | None:
        compared = self._opened().compared(pipeline, period)
        return None if compared is None else skew_record(*compared, time_ns() // 1000)


def _count(record: records.SkewRecord) -> None:
    for view in record.views:
        metrics.skew_compared.labels(record.pipeline, view.view).inc(view.compared)
        metrics.skew_differing.labels(record.pipeline, view.view).inc(view.differing)
        for feature in view.features:
            metrics.skew_share.labels(record.pipeline, feature.feature).set(feature.share)
    for reason, count in record.left_out.items():
        metrics.skew_left_out.labels(record.pipeline, reason).inc(count)
    said = log.warning if record.differing else log.info
    said("skew_measured", summary=record.summary)
