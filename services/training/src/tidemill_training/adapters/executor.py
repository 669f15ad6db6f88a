"""Works off the open runs: one process at a time per slot, every step repeatable from the start.

Order of the effects of a success: version registered, run ended in the registry, record published, row closed. A
crash between any two repeats the later ones; the earlier ones answer with what they did before.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
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
from tidemill_training.adapters.run_feed import RunFeed
from tidemill_training.inputs import topics_of
from tidemill_training.settings import TrainingSettings
from tidemill_training.spec import Done, Failed, Places, Progress, RunSpec

_LOOK_EVERY_S = 5.0
_CANCEL_LOOK_S = 1.0

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
        self._places = Places(parts.settings.artifacts, str(parts.settings.signing_key_file))

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
            if len(self._tasks) >= self._settings.concurrency or self._stopping.is_set():
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
                if not held:
                    # Another replica works on it; look again later, not at once.
                    await asyncio.sleep(_LOOK_EVERY_S)
                    return
                crash = ""
                for delay_s in delays(0.2, 10.0):
                    try:
                        await self._to_end(cause_key, crash)
                    except Retryable as error:
                        crash = str(error) if isinstance(error, RunCrashedError) else crash
                        log.warning("run_waits", cause_key=cause_key, error=str(error))
                        with metrics.runs_waiting.track_inprogress():
                            await asyncio.sleep(delay_s)
                    else:
                        return
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        except Retryable as error:
            log.warning("run_not_claimed", cause_key=cause_key, error=str(error))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _to_end(self, cause_key: str, crash: str) -> None:
        run = await self._parts.ledger.load(cause_key)
        if run is None:
            return
        try:
            record = await self._execute(run, crash)
        except Poison as poison:
            record = await self._fail(run, run_records.FAILED, str(poison))
        await self._parts.feed.publish(record)
        await self._parts.ledger.end(cause_key, record)
        self._parts.feed.wake()
        metrics.runs_ended.labels(record.status).inc()
        log.info("run_ended", run_id=record.run_id, status=record.status, summary=record.summary)

    async def _execute(self, run: OpenRun, crash: str) -> training.RunRecord:
        parts = self._parts
        pipeline = await parts.registry.definition(run.request.pipeline)
        known = await parts.registry.start(run.request)
        if known.status in run_records.ENDINGS:
            return await self._again(run, known)
        if run.attempts >= self._settings.max_attempts:
            return await self._fail(run, run_records.FAILED, f"{run.attempts} attempts ended early; {crash}")
        request = await self._fixed(run, pipeline)
        await self._say(run, run_records.started(known, request, parts.clock()))
        answer = await self._attempt(run, known.run_id, pipeline, request)
        if isinstance(answer, Failed):
            return await self._fail(run, run_records.FAILED, answer.reason)
        if isinstance(answer, str):
            return await self._fail(run, run_records.CANCELLED, answer)
        return await self._succeed(run, known.run_id, answer)

    async def _fixed(self, run: OpenRun, pipeline: definition.DefinitionRecord) -> monitoring.RetrainRequest:
        """Return the request with complete positions, the same for every attempt."""
        if run.fixed:
            return run.request
        topics = topics_of(pipeline.definition)
        positions = await completed(self._settings.kafka, run.request.positions, topics)
        del run.request.positions[:]
        run.request.positions.extend(positions)
        await self._parts.ledger.fix(run.cause_key, run.request)
        return run.request

    async def _attempt(
        self, run: OpenRun, run_id: str, pipeline: definition.DefinitionRecord, request: monitoring.RetrainRequest
    ) -> Done | Failed | str:
        """Return the process's answer, or why the run was cancelled."""
        process = asyncio.ensure_future(self._process(run, run_id, pipeline, request))
        asked = asyncio.ensure_future(self._asked_to_cancel(run.cause_key))
        try:
            await asyncio.wait({process, asked}, return_when=asyncio.FIRST_COMPLETED)
            return process.result() if process.done() else asked.result()
        finally:
            for task in (process, asked):
                task.cancel()
            await asyncio.wait({process, asked})

    async def _process(
        self, run: OpenRun, run_id: str, pipeline: definition.DefinitionRecord, request: monitoring.RetrainRequest
    ) -> Done | Failed:
        parts, settings = self._parts, self._settings
        bounds = Bounds(settings.run_memory_bytes, settings.run_cpu_s, settings.run_wall_s)
        # The process loads its libraries while the offline log is waited for.
        library = pipeline.definition.pipelines[0].learner.library
        async with parts.start(Launch(run_id, library, bounds)) as process:
            await parts.feature.archived(request.positions, settings.archive_wait_s)
            spec = RunSpec(
                run_id=run_id,
                record=pipeline,
                request=request,
                champion=await parts.registry.champion(request.pipeline),
                holdout=settings.holdout,
                flip_labels=run.number == settings.test_flip_labels_once,
                places=self._places,
                tables=await parts.catalogue.places(topics_of(pipeline.definition)),
            )
            await parts.ledger.note_attempt(run.cause_key, run_id)
            with metrics.attempt_seconds.time(), metrics.attempts_ended_early.count_exceptions(RunCrashedError):
                return await process.ask(spec, partial(self._progress, run, run_id, request))

    async def _asked_to_cancel(self, cause_key: str) -> str:
        while True:
            reason = await self._parts.ledger.cancel_reason(cause_key)
            if reason is not None:
                return reason
            await self._parts.feed.changed(_CANCEL_LOOK_S)

    async def _progress(self, run: OpenRun, run_id: str, request: monitoring.RetrainRequest, line: Progress) -> None:
        await self._say(run, run_records.progressed(run_id, request, line, self._parts.clock()))

    async def _say(self, run: OpenRun, record: training.RunRecord) -> None:
        await self._parts.ledger.note(run.cause_key, record)
        await self._parts.feed.publish(record)
        self._parts.feed.wake()

    async def _succeed(self, run: OpenRun, run_id: str, done: Done) -> training.RunRecord:
        details = run_records.details_of(done)
        version = await self._parts.registry.register(done.version)
        await self._parts.registry.finish(
            registry.FinishRunRequest(run_id=run_id, status=run_records.SUCCEEDED, details=details)
        )
        return run_records.succeeded(run_id, run.request, version, details, self._parts.clock())

    async def _again(self, run: OpenRun, known: registry.Run) -> training.RunRecord:
        """Return the last record of a run that the registry knows to have ended: only its publishing was lost."""
        if known.status != run_records.SUCCEEDED:
            return run_records.ended(known.run_id, run.request, known.status, known.reason, self._parts.clock())
        version = await self._parts.registry.version(run.request.pipeline, known.version)
        details = known.details if known.HasField("details") else Struct()
        return run_records.succeeded(known.run_id, run.request, version, details, self._parts.clock())

    async def _fail(self, run: OpenRun, status: str, reason: str) -> training.RunRecord:
        run_id = run.run_id or await self._run_id(run)
        if run_id:
            ending = registry.FinishRunRequest(run_id=run_id, status=status, reason=reason)
            await self._parts.registry.finish(ending)
        return run_records.ended(run_id, run.request, status, reason, self._parts.clock())

    async def _run_id(self, run: OpenRun) -> str:
        """Return the registry's id of the run; empty where it refuses to have one, as for an unknown pipeline."""
        try:
            return (await self._parts.registry.start(run.request)).run_id
        except Poison as poison:
            log.warning("run_not_registered", cause_key=run.cause_key, reason=poison.reason, error=str(poison))
            return ""
