"""Answers requests: checks them, reads features of all that wait in one trip, scores them together, logs them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_features.finalise import HOP_ACCURACY_BIT, STATUS_BITS
from tidemill_features.reader import Place, Request
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.positions import Offsets

from tidemill_serving import metrics
from tidemill_serving.answers import Answers, Checked
from tidemill_serving.batching import MicroBatcher
from tidemill_serving.prediction_log import Journal, Origin, origin_of
from tidemill_serving.request import Row, check_as_of, check_batch, check_prediction_id
from tidemill_serving.served import ReadElsewhereError, Served


class PredictionLog(Protocol):
    """Where predictions are logged."""

    def offer(self, predictions: Sequence[Outgoing]) -> None: ...

    async def write(self, predictions: Sequence[Outgoing]) -> None: ...

    @property
    def written(self) -> Offsets: ...


# By the number of tidemill.feature.v1.Status.
_STATUS_NAMES = ("unspecified", "present", "null", "not_found", "outside_max_age", "beyond_kept")

# Fetches values by key in one trip. Raises `Retryable`.
Fetch = Callable[[list[bytes]], Awaitable[Sequence[bytes | None]]]


# Those that a call makes are no frozen dataclasses, which take four times as long to make.
class Ask(NamedTuple):
    """One call: rows of one pipeline as of one instant (0: now), and how to log them."""

    pipeline: str
    rows: Sequence[Row]
    as_of_us: int
    include: Offsets
    durable: bool
    return_features: bool


class Asked(NamedTuple):
    """One answer or refusal per row, in order, and where DURABLE records end."""

    answers: Sequence[messages.Prediction | Poison]
    written: Offsets


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes that bound a call and what may wait."""

    batch_rows: int
    micro_batch_rows: int
    waiting_rows: int


@dataclass(eq=False, slots=True)
class _Job:
    served: Served
    requests: Sequence[Checked]
    as_of_us: int
    include: Offsets
    return_features: bool


@dataclass(slots=True)
class _Read:
    """Jobs that read the same features at the same instant, and what they ask of Redis."""

    served: Served
    as_of_us: int
    jobs: list[_Job] = field(default_factory=list)
    requests: list[Checked] = field(default_factory=list)


class _Done(NamedTuple):
    records: Sequence[records.PredictionRecord]
    predictions: Sequence[messages.Prediction]
    origin: Origin


class _BehindError(Exception):
    """The rings do not include yet what the caller wants included, or others are to be read."""


class Predictor:
    """The way of a request through the service; `table` and `known` say what is served now."""

    def __init__(
        self,
        lookup: Callable[[str], Served],
        fetch: Fetch,
        log: PredictionLog,
        journal: Journal,
        clock_us: Callable[[], int],
        bounds: Bounds,
    ) -> None:
        self._lookup = lookup
        self._fetch = fetch
        self._log = log
        self._journal = journal
        self._clock_us = clock_us
        self._bounds = bounds
        self._batcher: MicroBatcher[_Job, _Done] = MicroBatcher(
            self._run, max_rows=bounds.micro_batch_rows, max_waiting_rows=bounds.waiting_rows
        )

    async def predict(self, ask: Ask) -> Asked:
        """Answer one call. Raises `Poison` where the call itself is wrong, `Retryable` where now is no good time."""
        check_batch(len(ask.rows), self._bounds.batch_rows)
        served = self._lookup(ask.pipeline)
        as_of_us = check_as_of(ask.as_of_us, self._clock_us(), served.schema.stream.max_future_ms)
        checked = [_check(served, row) for row in ask.rows]
        good = [one for one in checked if isinstance(one, Checked)]
        if not good:
            return Asked([one for one in checked if isinstance(one, Poison)], {})
        done = await self._scored(_Job(served, good, as_of_us, ask.include, ask.return_features))
        written = await self._logged(done, durable=ask.durable)
        predictions = iter(done.predictions)
        return Asked([one if isinstance(one, Poison) else next(predictions) for one in checked], written)

    async def drained(self) -> None:
        """Return once nothing is being scored."""
        await self._batcher.drained()

    async def _scored(self, job: _Job) -> _Done:
        while True:
            if job.include:
                await self._included(job)
            try:
                return await self._batcher.submit(job, len(job.requests))
            except _BehindError:
                # Between the two looks Redis was restarted and lost its last writes.
                metrics.reads_behind.inc()

    async def _included(self, job: _Job) -> None:
        """Return once the rings include what the caller wants included, or never: its deadline ends the wait."""
        request = job.served.reader.request([])
        for pause_s in _pauses():
            if _covers(job.served.positions(request, await self._fetch(request.keys)), job.include):
                return
            await asyncio.sleep(pause_s)

    async def _logged(self, done: _Done, *, durable: bool) -> Offsets:
        entries = [self._journal.entry(record, done.origin, durable=durable) for record in done.records]
        if not durable:
            self._log.offer(entries)
            return {}
        await self._log.write(entries)
        return self._log.written

    async def _run(self, jobs: Sequence[_Job]) -> Sequence[_Done | Exception]:
        now_us = self._clock_us()
        reads = _grouped(jobs, now_us)
        asked = [read.served.ask([one.values for one in read.requests]) for read in reads]
        raws = await self._fetched(asked)
        metrics.batch_rows.observe(sum(len(read.requests) for read in reads))
        results: dict[int, _Done | Exception] = {}
        start = 0
        for read, request in zip(reads, asked, strict=True):
            stop = start + len(request.keys)
            results.update(_answered(read, request, raws[start:stop], now_us))
            start = stop
        return [results[id(job)] for job in jobs]

    async def _fetched(self, asked: Sequence[Request]) -> Sequence[bytes | None]:
        began = perf_counter()
        keys = asked[0].keys if len(asked) == 1 else [key for request in asked for key in request.keys]
        raws = await self._fetch(keys)
        metrics.feature_read_seconds.observe(perf_counter() - began)
        return raws


def _pauses() -> Iterator[float]:
    """Yield the times between looks at how far the rings have come; Redis tells nobody that one moved on.

    A look costs a third of a millisecond, and nobody waits longer than a quarter more than he must.
    """
    pause_s = 0.0015
    while True:
        yield pause_s
        pause_s = min(0.05, pause_s * 1.25)


def _check(served: Served, row: Row) -> Checked | Poison:
    try:
        return Checked(served.schema.check(row.fields), check_prediction_id(row.prediction_id))
    except Poison as poison:
        metrics.refused_rows.labels(poison.reason).inc()
        return poison


def _grouped(jobs: Sequence[_Job], now_us: int) -> list[_Read]:
    """Return the reads that answer the jobs: one per pipeline entry and instant; "now" is one instant for all."""
    reads: dict[tuple[int, int], _Read] = {}
    for job in jobs:
        as_of_us = job.as_of_us or now_us
        read = reads.setdefault((id(job.served), as_of_us), _Read(job.served, as_of_us))
        read.jobs.append(job)
        read.requests.extend(job.requests)
    return list(reads.values())


def _answered(read: _Read, request: Request, raws: Sequence[bytes | None], now_us: int) -> dict[int, _Done | Exception]:
    """Return what each job of a read gets: its answers, or why there are none."""
    served = read.served
    try:
        rows = served.read(request, raws, read.as_of_us, [one.values for one in read.requests])
        began = perf_counter()
        scores = served.score(rows.vector)
        metrics.score_seconds.labels(served.pipeline).observe(perf_counter() - began)
    except (Retryable, Poison) as error:
        return {id(job): error for job in read.jobs}
    except ReadElsewhereError:
        return {id(job): _BehindError() for job in read.jobs}
    origin = origin_of(served.pipeline, served.definition_hash, served.revision, read.as_of_us, rows.positions, now_us)
    answers = Answers(served, rows.vector, scores, read.as_of_us)
    results: dict[int, _Done | Exception] = {}
    first = 0
    for job in read.jobs:
        results[id(job)] = (
            _done(job, answers, origin, first) if _covers(rows.positions, job.include) else _BehindError()
        )
        first += len(job.requests)
    _count(served, rows.vector.status, results.values())
    return results


def _done(job: _Job, answers: Answers, origin: Origin, first: int) -> _Done:
    logged = [answers.record(row, request) for row, request in enumerate(job.requests, first)]
    predictions = [
        answers.prediction(row, record, with_features=job.return_features) for row, record in enumerate(logged, first)
    ]
    return _Done(logged, predictions, origin)


def _count(served: Served, status: NDArray[np.uint8], results: Iterable[_Done | Exception]) -> None:
    """Count once per read: finding a metric's label takes longer than answering a row."""
    counts = np.bincount(status.ravel() & STATUS_BITS, minlength=len(_STATUS_NAMES)).tolist()
    for name, count in zip(_STATUS_NAMES, counts, strict=False):
        if count:
            metrics.feature_status.labels(served.pipeline, name).inc(count)
    coarse = int(np.count_nonzero(status & HOP_ACCURACY_BIT))
    if coarse:
        metrics.hop_accuracy.labels(served.pipeline).inc(coarse)
    answering = Counter(one.model_version for done in results if isinstance(done, _Done) for one in done.records)
    for version in served.versions:
        if answering[version.number]:
            role = records.Role.Name(version.role).removeprefix("ROLE_").lower()
            metrics.predictions.labels(served.pipeline, role).inc(answering[version.number])


def _covers(positions: Mapping[Place, int], include: Offsets) -> bool:
    """Return whether what was read includes these positions; topics that the pipeline does not read do not count."""
    if not include:
        return True
    topics = {place.topic for place in positions}
    return all(
        positions.get(Place(wanted.topic, wanted.number), -1) >= offset
        for wanted, offset in include.items()
        if wanted.topic in topics
    )
