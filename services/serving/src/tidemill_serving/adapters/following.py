"""Follows the registry's topics and tells the deployer what should be served."""

import asyncio
from typing import Self

from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Record
from tidemill_runtime.errors import Poison
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.lifecycle import Component, running
from tidemill_runtime.positions import Offsets
from tidemill_runtime.progress import Reached
from tidemill_runtime.settings import KafkaSettings

from tidemill_serving.deployer import Deployer
from tidemill_serving.desired import Registered
from tidemill_serving.served import Served

PIPELINES = "registry.pipelines.v1"
DEPLOYMENTS = "registry.deployments.v1"
# A fetch of one partition returns as soon as there is a record: waiting long costs no latency and saves empty fetches.
_FETCH_WAIT_MS = 500


class Following(Component):
    """A `Component`: definitions and deployments from their topics, laid over the last good state.

    The last good state serves until both topics are read to their ends; from then on what they say counts, and what
    they do not mention stays.
    """

    def __init__(self, kafka: KafkaSettings, deployer: Deployer[Served], last_good: Registered) -> None:
        self._deployer = deployer
        self._last_good = last_good
        self._live = Registered()
        self._pipelines = TopicFollower(kafka, PIPELINES, self._fold_definition, fetch_wait_ms=_FETCH_WAIT_MS)
        self._deployments = TopicFollower(kafka, DEPLOYMENTS, self._fold_deployment, fetch_wait_ms=_FETCH_WAIT_MS)
        self._stopping = asyncio.Event()
        self._ready = False

    def fault(self) -> str | None:
        """Return why requests should not come yet; a last good state is enough to serve without Kafka."""
        if self._ready:
            return None
        loading = "; ".join(["deployments are being loaded", *map(str, self._deployer.pending.values())])
        return self._pipelines.fault() or self._deployments.fault() or loading

    async def __aenter__(self) -> Self:
        self._deployer.want(self._last_good, whole=False)
        return self

    def stop(self) -> None:
        """Follow nothing more."""
        self._stopping.set()

    async def run(self) -> None:
        """Follow until `stop`."""
        async with running(self._pipelines), running(self._deployments), asyncio.TaskGroup() as tasks:
            catching_up = tasks.create_task(self._become_ready())
            await self._stopping.wait()
            catching_up.cancel()

    async def deployments(self, offsets: Offsets, event_time_us: int) -> Reached:
        """The stage of WaitProgress: everything up to these offsets is followed, loaded and served.

        Raises `Retryable` where a deployment was refused.
        """
        if event_time_us:
            raise Poison(Reason.UNSUPPORTED, "this stage keeps no event time", field="event_time_us", fix="leave it 0")
        await self._caught_up()
        await self._pipelines.reached(offsets)
        await self._deployments.reached(offsets)
        # The fold of the last record and the end of catching up may come in either order.
        self._want()
        await self._deployer.settled()
        return Reached({})

    async def _caught_up(self) -> None:
        await self._pipelines.caught_up.wait()
        await self._deployments.caught_up.wait()

    async def _become_ready(self) -> None:
        if self._last_good.wanted():
            await self._deployer.attempted()
            self._ready = bool(self._deployer.table.entries)
        await self._caught_up()
        self._want()
        await self._deployer.attempted()
        self._ready = True

    def _fold_definition(self, record: Record) -> None:
        self._take(self._live.with_definition(record.value))

    def _fold_deployment(self, record: Record) -> None:
        self._take(self._live.with_deployment(record.key, record.value))

    def _take(self, live: Registered) -> None:
        if live is self._live:
            return
        self._live = live
        if self._pipelines.caught_up.is_set() and self._deployments.caught_up.is_set():
            self._want()

    def _want(self) -> None:
        self._deployer.want(self._live.over(self._last_good))
