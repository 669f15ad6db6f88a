"""Brings what is served to what is wanted: load fully, then swap, one pipeline at a time, and remember what served.

A pipeline's old entry serves until its new one is loaded, verified, warmed up and has features to read, and stays where
the new one is refused; requests that began with the old one end with it. What is not served is tried again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

import structlog
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Poison, Retryable, TidemillError
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.retries import delays

from tidemill_serving import metrics
from tidemill_serving.desired import Registered, Wanted, remembered
from tidemill_serving.routing import RoutingTable

E = TypeVar("E")

# A refused deployment is looked at again after a second, and in the end every minute.
_REFUSED_FIRST_S, _REFUSED_LAST_S = 1.0, 60.0

log = structlog.get_logger(__name__)


class State(StrEnum):
    """Why a deployment is not served yet."""

    UNREACHABLE = "unreachable"
    VIEWS_BUILDING = "views_building"
    REFUSED = "refused"


class ViewsBuildingError(Retryable):
    """The views that a deployment reads are not there yet: answers would fail that the one before it can give."""


@dataclass(eq=False)
class Pending(Generic[E]):
    """A deployment that is not served yet; what served before goes on."""

    wanted: Wanted
    state: State
    reason: str
    due_s: float = 0.0
    retries: Iterator[float] = field(default_factory=delays)
    # Loaded already, and waiting for its views since then.
    entry: E | None = None
    since_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.wanted.name} revision {self.wanted.deployment.revision} ({self.state}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Steps(Generic[E]):
    """What a deployment goes through. `load` turns a wanted pipeline into an entry, and `views` says that its views can
    be read; `remember` is told what is served (or, where nothing is, wanted), and what is wanted, after every change.

    The first two raise `Retryable` where that may be right later (`views`: `ViewsBuildingError`), `Poison` where it
    will not.
    """

    load: Callable[[Wanted], Awaitable[E]]
    views: Callable[[E], Awaitable[None]]
    remember: Callable[[Registered, Registered], Awaitable[None]]


class Deployer(Component, Generic[E]):
    """Owns the routing table.

    Where nothing serves a pipeline yet nothing is waited for but its bundles: an answer that names the view that is
    being built says more than none. Elsewhere views are waited for, at most `views_wait_s`; then the deployment counts
    as refused. Refused ones are tried again, ever more rarely.
    """

    def __init__(self, steps: Steps[E], views_wait_s: float) -> None:
        self._steps = steps
        self._views_wait_s = views_wait_s
        self._held: dict[str, Wanted] = {}
        self._pending: dict[str, Pending[E]] = {}
        self._registered, self._whole = Registered(), False
        self._target = 0
        self._reached = asyncio.Condition()
        self._done = 0
        self._changed = asyncio.Event()
        self._stopping = False
        self.table: RoutingTable[E] = RoutingTable()

    def entry(self, pipeline: str) -> E:
        """Return what serves a pipeline now.

        Raises `Retryable` where it may be served in a moment, as after a start; `Poison`: unknown, without a model, or
        with one that is refused.
        """
        if pipeline not in self.table.entries:
            self._check_deployed(pipeline)
        return self.table.entry(pipeline, known=self._registered.knows(pipeline))

    def _check_deployed(self, pipeline: str) -> None:
        """Raise what is still to be done, or why what is deployed is refused; return where nothing is deployed."""
        wanted = self._registered.wanted().get(pipeline)
        if wanted is None:
            if not self._whole:
                raise Retryable("what the registry has deployed is still being read")
            return
        pending = self._pending.get(pipeline)
        if pending is None or pending.wanted.key != wanted.key:
            raise Retryable(f"pipeline {pipeline} is being loaded")
        if pending.state is not State.REFUSED:
            raise Retryable(str(pending))
        raise Poison(
            Reason.NO_MODEL,
            f"pipeline {pipeline}: what is deployed (revision {wanted.deployment.revision}) cannot be served: "
            f"{pending.reason}",
            field="pipeline",
            fix=f"train a version: tidemill retrain {pipeline}, or promote one that can be served",
        )

    @property
    def pending(self) -> Mapping[str, Pending[E]]:
        """What is wanted and not served, by pipeline."""
        return self._pending

    def want(self, registered: Registered, *, whole: bool = True) -> None:
        """Set what should be served; returns at once. Not `whole`: there may be more that is not known yet."""
        self._registered, self._whole = registered, whole
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
        if self._pending:
            raise Retryable(f"not everything deployed is served: {'; '.join(map(str, self._pending.values()))}")

    def stop(self) -> None:
        """Change nothing more."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Follow what is wanted until `stop`."""
        while True:
            await self._wait()
            if self._stopping:
                return
            target = self._target
            await self._bring_about(self._registered)
            if all(one.state is State.REFUSED for one in self._pending.values()):
                async with self._reached:
                    self._done = target
                    self._reached.notify_all()

    async def _wait(self) -> None:
        """Return when something else is wanted, or something is to be tried again."""
        due_s = min((one.due_s for one in self._pending.values()), default=None)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), None if due_s is None else max(0.0, due_s - _now_s()))
        self._changed.clear()

    async def _bring_about(self, registered: Registered) -> None:
        wanted = registered.wanted()
        gone = [name for name in {**self._held, **self._pending} if name not in wanted]
        for name in gone:
            self._drop(name)
        served = [await self._replace(one) for one in wanted.values() if self._is_due(one)]
        if gone or any(served):
            # What was remembered and cannot be loaded now is not forgotten for that.
            known = {**wanted, **self._held}
            await self._steps.remember(remembered(known.values()), remembered(wanted.values()))

    def _is_due(self, wanted: Wanted) -> bool:
        held, pending = self._held.get(wanted.name), self._pending.get(wanted.name)
        if held is not None and held.key == wanted.key:
            self._pending.pop(wanted.name, None)
            return False
        return pending is None or pending.wanted.key != wanted.key or pending.due_s <= _now_s()

    async def _replace(self, wanted: Wanted) -> bool:
        """Serve a deployment, or note why not; return whether it is served."""
        pending = self._pending.get(wanted.name)
        if pending is None or pending.wanted.key != wanted.key:
            pending = Pending(wanted, State.UNREACHABLE, "")
        try:
            if pending.entry is None:
                pending.entry = await self._steps.load(wanted)
                pending.since_s = _now_s()
            if wanted.name in self._held:
                await self._steps.views(pending.entry)
        except (Retryable, Poison) as error:
            self._put_off(pending, error)
            return False
        self._held[wanted.name] = wanted
        self._pending.pop(wanted.name, None)
        # One assignment: a request sees the old table or the new one, never a mixture.
        self.table = self.table.with_entry(wanted.name, pending.entry)
        metrics.deployments.labels(wanted.name, "served").inc()
        log.info("deployment_served", **_named(wanted), champion=wanted.deployment.champion.version)
        return True

    def _put_off(self, pending: Pending[E], error: TidemillError) -> None:
        """Say when a deployment is tried again, and why it is not served until then."""
        before, state, reason = pending.state, State.UNREACHABLE, str(error)
        if isinstance(error, Poison):
            state = State.REFUSED
        elif isinstance(error, ViewsBuildingError):
            over = _now_s() - pending.since_s >= self._views_wait_s
            state = State.REFUSED if over else State.VIEWS_BUILDING
        if state is not before:
            pending.retries = delays(_REFUSED_FIRST_S, _REFUSED_LAST_S) if state is State.REFUSED else delays()
        if state is not before or not pending.reason:
            metrics.deployments.labels(pending.wanted.name, state.value).inc()
            log.warning("deployment_not_served", **_named(pending.wanted), state=state.value, error=reason)
        pending.state, pending.reason = state, reason
        pending.due_s = _now_s() + next(pending.retries)
        self._pending[pending.wanted.name] = pending

    def _drop(self, name: str) -> None:
        self.table = self.table.without(name)
        self._held.pop(name, None)
        self._pending.pop(name, None)
        log.info("deployment_withdrawn", pipeline=name)


def _named(wanted: Wanted) -> dict[str, str | int]:
    return {"pipeline": wanted.name, "revision": wanted.deployment.revision}


def _now_s() -> float:
    return asyncio.get_running_loop().time()
