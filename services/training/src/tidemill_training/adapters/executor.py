"""Works off the open runs: one process at a time per slot, every step repeatable from the start.

Order of the effects of a success: answer kept, version registered, run ended in the registry, record published, row
closed. A crash between any two repeats the later ones; the earlier ones answer with what they did before.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

import structlog
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.retries import delays

from tidemill_training import metrics, run_records
from tidemill_training.adapters.catalogue import Catalogue
from tidemill_training.adapters.claims import Claims
from tidemill_training.adapters.ledger import Ledger, OpenRun
from tidemill_training.adapters.peers import FeaturePeer, RegistryPeer
from tidemill_training.adapters.positions import completed
from tidemill_training.adapters.processes import Bounds, Launch, RunCrashedError, StartProcess
from tidemill_training.adapters.run_feed import RunFeed, Telling
from tidemill_training.inputs import topics_of
from tidemill_training.settings import TrainingSettings
from tidemill_training.spec import Done, Failed, Places, Progress, RunSpec

_LOOK_EVERY_S = 5.0
_CANCEL_LOOK_S = 1.0
_UNSEEN = "the last one ended with its service, or while PostgreSQL was away"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the executor works with."""

    settings: TrainingSettings
    ledger: Ledger
    claims: Claims
    catalogue: Catalogue
    registry: RegistryPeer
    feature: FeaturePeer
    feed: RunFeed
    # Microseconds since the epoch, UTC.
    clock: Callable[[], int]
    start: StartProcess


class Executor(Component):
    """Runs open runs until `stop`; a `Component` for `running`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        # Causes that another replica works on, until they are looked at again: they take no slot.
        self._elsewhere: set[str] = set()
        # Runs whose counted attempt was cut short by `stop`.
        self._cut_short: list[OpenRun] = []
        self._places = Places(parts.settings.artifacts, str(parts.settings.signing_key_file))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take back the attempts that an orderly stop cut short; of a crash a run may be the cause, so they count."""
        self.stop()
        if kind is None or issubclass(kind, asyncio.CancelledError):
            for run in self._cut_short:
                await self._take_back(run)

    def wake(self) -> None:
        """Say that there may be a new run, or a run to cancel."""
        self._wake.set()

    def stop(self) -> None:
        """Start nothing more; runs in work are killed and taken up again by the next process."""
        self._stopping.set()
        self._wake.set()
        for task in self._tasks:
            task.cancel()

    async def run(self) -> None:
        """Look for open runs whenever woken, and now and then for those that another replica left."""
        async with asyncio.TaskGroup() as group:
            while not self._stopping.is_set():
                await self._start_what_is_open(group)
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._wake.wait()
                except TimeoutError:
                    log.debug("looked_for_runs")
                self._wake.clear()

    async def _start_what_is_open(self, group: asyncio.TaskGroup) -> None:
        try:
            causes = await self._parts.ledger.open_causes()
        except Retryable as error:
            log.warning("runs_not_listed", error=str(error))
            return
        working = {task.get_name() for task in self._tasks}
        for cause_key in causes:
            if len(self._tasks) - len(self._elsewhere) >= self._settings.concurrency or self._stopping.is_set():
                return
            if cause_key not in working:
                task = group.create_task(self._work(cause_key), name=cause_key)
                self._tasks.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()

    async def _work(self, cause_key: str) -> None:
        """Bring one run to its end, waiting out what is away; a stop leaves it open for the next process."""
        try:
            async with self._parts.claims.claim(cause_key) as held:
                if held:
                    await self._insist(cause_key)
                else:
                    await self._look_again_later(cause_key)
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        except Retryable as error:
            log.warning("run_not_claimed", cause_key=cause_key, error=str(error))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look_again_later(self, cause_key: str) -> None:
        """Leave a run to the replica that works on it, and the slot to the next cause."""
        self._elsewhere.add(cause_key)
        self._wake.set()
        try:
            await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            self._elsewhere.discard(cause_key)

    async def _insist(self, cause_key: str) -> None:
        async with self._parts.feed.telling(cause_key) as telling:
            for delay_s in delays(0.2, 10.0):
                try:
                    await self._to_end(cause_key, telling)
                except Retryable as error:
                    log.warning("run_waits", cause_key=cause_key, error=str(error))
                    with metrics.runs_waiting.track_inprogress():
                        await asyncio.sleep(delay_s)
                else:
                    return

    async def _to_end(self, cause_key: str, telling: Telling) -> None:
        run = await self._parts.ledger.load(cause_key)
        if run is None:
            return
        try:
            # Asked first: whatever became of the definition since, a run that has ended has ended.
            known = await self._parts.registry.start(run.request)
            run = replace(run, run_id=known.run_id)
            record = await self._execute(run, known, telling)
        except Poison as poison:
            record = await self._fail(run, run_records.FAILED, str(poison))
        await telling.settle()
        await self._publish(record)
        await self._parts.ledger.end(cause_key, record)
        self._parts.feed.wake()
        metrics.runs_ended.labels(record.status).inc()
        log.info("run_ended", run_id=record.run_id, status=record.status, summary=record.summary)

    async def _publish(self, record: training.RunRecord) -> None:
        try:
            await self._parts.feed.publish(record)
        except Poison as poison:
            # Kafka will never take it; the ledger answers who asks.
            log.warning("run_not_published", run_id=record.run_id, reason=poison.reason, error=str(poison))

    async def _execute(self, run: OpenRun, known: registry.Run, telling: Telling) -> training.RunRecord:
        if known.status in run_records.ENDINGS:
            return await self._told(run, known)
        if known.version:
            return await self._succeed(run)
        pipeline = await self._parts.registry.definition(run.request.pipeline)
        answer = await self._kept(run, pipeline) or await self._trained(run, known, pipeline, telling)
        match answer:
            case Failed(reason):
                return await self._fail(run, run_records.FAILED, reason)
            case Done(version):
                await self._parts.registry.register(version)
                return await self._succeed(replace(run, answer=answer))
            case reason:
                return await self._fail(run, run_records.CANCELLED, reason)

    async def _kept(self, run: OpenRun, pipeline: definition.DefinitionRecord) -> Done | str | None:
        """Return an earlier attempt's answer, or why the run was cancelled since; None where there is none to use."""
        if run.answer is None or run.answer.version.lineage.definition_hash != pipeline.hash:
            return None
        return await self._parts.ledger.cancel_reason(run.cause_key) or run.answer

    async def _trained(
        self, run: OpenRun, known: registry.Run, pipeline: definition.DefinitionRecord, telling: Telling
    ) -> Done | Failed | str:
        """Make an attempt, if there is one left, and keep its answer: nothing that follows trains again."""
        if run.attempts >= self._settings.max_attempts:
            return Failed(f"{run.attempts} attempts ended early; {run.early_end or _UNSEEN}")
        await self._fix(run, pipeline)
        await self._say(run, run_records.started(known, run.request, self._parts.clock()), telling)
        answer = await self._attempt(run, pipeline, telling)
        if isinstance(answer, Done):
            await self._parts.ledger.keep(run.cause_key, answer)
        return answer

    async def _fix(self, run: OpenRun, pipeline: definition.DefinitionRecord) -> None:
        """Complete the request's positions and keep them: every attempt reads the same records."""
        if run.fixed:
            return
        topics = topics_of(pipeline.definition)
        positions = await completed(self._settings.kafka, run.request.positions, topics)
        del run.request.positions[:]
        run.request.positions.extend(positions)
        await self._parts.ledger.fix(run.cause_key, run.request)

    async def _attempt(
        self, run: OpenRun, pipeline: definition.DefinitionRecord, telling: Telling
    ) -> Done | Failed | str:
        """Return the process's answer, or why the run was cancelled."""
        process = asyncio.ensure_future(self._process(run, pipeline, telling))
        asked = asyncio.ensure_future(self._asked_to_cancel(run.cause_key))
        try:
            await asyncio.wait({process, asked}, return_when=asyncio.FIRST_COMPLETED)
            return process.result() if process.done() else asked.result()
        finally:
            for task in (process, asked):
                task.cancel()
            await asyncio.wait({process, asked})

    async def _process(self, run: OpenRun, pipeline: definition.DefinitionRecord, telling: Telling) -> Done | Failed:
        parts, settings = self._parts, self._settings
        bounds = Bounds(settings.run_memory_bytes, settings.run_cpu_s, settings.run_wall_s)
        # The process loads its libraries while the offline log is waited for.
        library = pipeline.definition.pipelines[0].learner.library
        async with parts.start(Launch(run.run_id, library, bounds)) as process:
            await parts.feature.archived(run.request.positions, settings.archive_wait_s)
            spec = RunSpec(
                run_id=run.run_id,
                record=pipeline,
                request=run.request,
                champion=await parts.registry.champion(run.request.pipeline),
                holdout=settings.holdout,
                flip_labels=run.number == settings.test_flip_labels_once,
                places=self._places,
                tables=await parts.catalogue.places(topics_of(pipeline.definition)),
            )
            await parts.ledger.note_attempt(run.cause_key)
            try:
                with metrics.attempt_seconds.time(), metrics.attempts_ended_early.count_exceptions(RunCrashedError):
                    return await process.ask(spec, partial(self._progress, run, telling))
            except RunCrashedError as crash:
                await parts.ledger.note_early_end(run.cause_key, str(crash))
                raise
            except asyncio.CancelledError:
                if self._stopping.is_set():
                    self._cut_short.append(run)
                raise

    async def _take_back(self, run: OpenRun) -> None:
        try:
            await self._parts.ledger.take_back(run)
        except Retryable as error:
            log.warning("attempt_not_taken_back", run_id=run.run_id, error=str(error))

    async def _asked_to_cancel(self, cause_key: str) -> str:
        while True:
            reason = await self._parts.ledger.cancel_reason(cause_key)
            if reason is not None:
                return reason
            await self._parts.feed.changed(_CANCEL_LOOK_S)

    async def _progress(self, run: OpenRun, telling: Telling, line: Progress) -> None:
        await self._say(run, run_records.progressed(run.run_id, run.request, line, self._parts.clock()), telling)

    async def _say(self, run: OpenRun, record: training.RunRecord, telling: Telling) -> None:
        await self._parts.ledger.note(run.cause_key, record)
        telling.say(record)
        self._parts.feed.wake()

    async def _succeed(self, run: OpenRun) -> training.RunRecord:
        """End a run whose version is registered."""
        details = None if run.answer is None else run_records.details_of(run.answer)
        ending = registry.FinishRunRequest(run_id=run.run_id, status=run_records.SUCCEEDED, details=details)
        return await self._told(run, await self._parts.registry.finish(ending))

    async def _told(self, run: OpenRun, known: registry.Run) -> training.RunRecord:
        """Return the last record of a run that has ended, as the registry tells of it."""
        if known.status != run_records.SUCCEEDED:
            return run_records.ended(known.run_id, run.request, known.status, known.reason, self._parts.clock())
        version = await self._parts.registry.version(run.request.pipeline, known.version)
        details = known.details if known.HasField("details") else Struct()
        return run_records.succeeded(known.run_id, run.request, version, details, self._parts.clock())

    async def _fail(self, run: OpenRun, status: str, reason: str) -> training.RunRecord:
        """End a run that made no version, or tell how it has ended; the registry may refuse to have it at all."""
        ending = registry.FinishRunRequest(run_id=run.run_id, status=status, reason=reason)
        try:
            if run.run_id:
                return await self._told(run, await self._parts.registry.finish(ending))
        except Poison as poison:
            log.warning("run_not_finished", run_id=run.run_id, reason=poison.reason, error=str(poison))
        return run_records.ended(run.run_id, run.request, status, reason, self._parts.clock())
