"""Wait for a claim to become true, with a deadline, in place of sleeping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
# No claim takes as long on a machine that is free: it is there for one that is not, and costs nobody who is right.
PATIENCE_S = 60.0
FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.25


class NeverTrueError(AssertionError):
    """The claim was still false at the deadline."""


def _message(claim: str, deadline_s: float, last: object, error: Exception | None) -> str:
    seen = f"last error: {error!r}" if error is not None else f"last value: {last!r}"
    return f"not within {deadline_s:g} s: {claim or 'the predicate'}; {seen}"


def eventually(
    predicate: Callable[[], T],
    deadline_s: float = PATIENCE_S,
    *,
    claim: str = "",
    tolerate: tuple[type[Exception], ...] = (AssertionError,),
) -> T:
    """Return the first true value of `predicate`; it blocks the thread, so use `aeventually` in a coroutine.

    An exception of the `tolerate` kinds counts as "not yet". Raises: NeverTrueError with what was seen last.
    """
    ends = time.monotonic() + deadline_s
    pause = FIRST_PAUSE_S
    while True:
        last: object = None
        error: Exception | None = None
        try:
            value = predicate()
            if value:
                return value
            last = value
        except tolerate as caught:
            error = caught
        if time.monotonic() >= ends:
            raise NeverTrueError(_message(claim, deadline_s, last, error)) from error
        time.sleep(min(pause, max(0.0, ends - time.monotonic())))
        pause = min(pause * 1.5, LONGEST_PAUSE_S)


@overload
async def aeventually(
    predicate: Callable[[], Awaitable[T]],
    deadline_s: float = ...,
    *,
    claim: str = ...,
    tolerate: tuple[type[Exception], ...] = ...,
) -> T: ...


@overload
async def aeventually(
    predicate: Callable[[], T],
    deadline_s: float = ...,
    *,
    claim: str = ...,
    tolerate: tuple[type[Exception], ...] = ...,
) -> T: ...


async def aeventually(
    predicate: Callable[[], Any],
    deadline_s: float = PATIENCE_S,
    *,
    claim: str = "",
    tolerate: tuple[type[Exception], ...] = (AssertionError,),
) -> Any:
    """Return the first true value of `predicate`, a function or a coroutine function, without blocking the loop.

    An exception of the `tolerate` kinds counts as "not yet". Raises: NeverTrueError with what was seen last.
    """
    ends = time.monotonic() + deadline_s
    pause = FIRST_PAUSE_S
    while True:
        last: object = None
        error: Exception | None = None
        try:
            given = predicate()
            value = await given if inspect.isawaitable(given) else given
            if value:
                return value
            last = value
        except tolerate as caught:
            error = caught
        if time.monotonic() >= ends:
            raise NeverTrueError(_message(claim, deadline_s, last, error)) from error
        await asyncio.sleep(min(pause, max(0.0, ends - time.monotonic())))
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
