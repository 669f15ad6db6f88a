"""Brings what is served to what is wanted: load fully, then swap, one pipeline at a time, and remember what served.

A pipeline's old entry serves until its new one is loaded, verified and warmed up, and stays where the new one is
refused; requests that began with the old one end with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.retries import delays

from tidemill_serving import metrics
from tidemill_serving.desired import Registered, Wanted, remembered
from tidemill_serving.routing import RoutingTable

E = TypeVar("E")

log = structlog.get_logger(__name__)


class _Outcome(Enum):
    SERVED = "served"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A deployment that cannot be served; what served before goes on."""

    pipeline: str
    revision: int
    reason: str


class Deployer(Generic[E]):
    """Owns the routing table. `load` turns a wanted pipeline into an entry.

    `load` raises `Poison` where the deployment will never be right, `Retryable` where it may be later. `remember` is
    called with what is served after every change.
    """

    def __init__(
        self,
        load: Callable[[Wanted], Awaitable[E]],
        remember: Callable[[Registered], Awaitable[None]],
    ) -> None:
        self._load = load
        self._remember = remember
        self._held: dict[str, Wanted] = {}
        self._refused: dict[str, Refusal] = {}
        self._seen: dict[str, tuple[str, bytes]] = {}
        self._registered = Registered()
        self._target = 0
        self._reached = asyncio.Condition()
        self._done = 0
        self._changed = asyncio.Event()
        self._stopping = False
        self.table: RoutingTable[E] = RoutingTable()

    def entry(self, pipeline: str) -> E:
        """Return what serves a pipeline now. Raises `Poison`: unknown, or without a model."""
        return self.table.entry(pipeline, known=pipeline in self._registered.definitions)

    @property
    def refusals(self) -> Mapping[str, Refusal]:
        """What was refused and not replaced since, by pipeline."""
        return self._refused

    def want(self, registered: Registered) -> None:
        """Set what should be served; returns at once."""
        self._registered = registered
        self._target += 1
        self._changed.set()

    async def attempted(self) -> None:
        """Return once everything wanted so far is served or refused."""
        target = self._target
        async with self._reached:
            await self._reached.wait_for(lambda: self._done >= target)

    async def settled(self) -> None:
        """Return once everything wanted so far is served. Raises `Retryable` naming what was refused."""
        await self.attempted()
        if self._refused:
            sentences = "; ".join(
                f"{one.pipeline} revision {one.revision}: {one.reason}" for one in self._refused.values()
            )
            raise Retryable(f"not everything deployed is served: {sentences}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Change nothing more."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Follow what is wanted until `stop`."""
        retries = delays()
        retry_s: float | None = None
        while True:
            await self._wait(retry_s)
            if self._stopping:
                return
            target = self._target
            if await self._bring_about(self._registered):
                retries, retry_s = delays(), None
                async with self._reached:
                    self._done = target
                    self._reached.notify_all()
            else:
                retry_s = next(retries)

    async def _wait(self, at_most_s: float | None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), at_most_s)
        self._changed.clear()

    async def _bring_about(self, registered: Registered) -> bool:
        """Return whether all is served or refused; False where something could not be reached and is tried again."""
        wanted = registered.wanted()
        gone = [name for name in self._seen if name not in wanted]
        for name in gone:
            self._drop(name)
        outcomes = [await self._replace(one) for one in wanted.values() if self._seen.get(one.name) != one.key]
        if gone or any(outcome is _Outcome.SERVED for outcome in outcomes):
            await self._remember(remembered(self._held.values()))
        return _Outcome.UNREACHABLE not in outcomes

    async def _replace(self, wanted: Wanted) -> _Outcome:
        detail = {"pipeline": wanted.name, "revision": wanted.deployment.revision}
        try:
            entry = await self._load(wanted)
        except Retryable as error:
            log.warning("deployment_waits", **detail, error=str(error))
            metrics.deployments.labels(wanted.name, "waiting").inc()
            return _Outcome.UNREACHABLE
        except Poison as error:
            log.warning("deployment_refused", **detail, reason=error.reason, error=str(error))
            metrics.deployments.labels(wanted.name, "refused").inc()
            self._seen[wanted.name] = wanted.key
            self._refused[wanted.name] = Refusal(wanted.name, wanted.deployment.revision, str(error))
            return _Outcome.REFUSED
        self._held[wanted.name] = wanted
        self._seen[wanted.name] = wanted.key
        self._refused.pop(wanted.name, None)
        # One assignment: a request sees the old table or the new one, never a mixture.
        self.table = self.table.with_entry(wanted.name, entry)
        metrics.deployments.labels(wanted.name, "served").inc()
        log.info("deployment_served", **detail, champion=wanted.deployment.champion.version)
        return _Outcome.SERVED

    def _drop(self, name: str) -> None:
        self.table = self.table.without(name)
        self._held.pop(name, None)
        self._refused.pop(name, None)
        del self._seen[name]
        log.info("deployment_withdrawn", pipeline=name)
