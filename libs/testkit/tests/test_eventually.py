"""`eventually` waits, gives up in time and says what it saw."""

import time

import pytest
from tidemill_testkit.eventually import NeverTrueError, aeventually, eventually


def test_returns_the_first_true_value() -> None:
    values = iter([0, None, 7, 8])
    assert eventually(lambda: next(values), 5) == 7


def test_an_assertion_counts_as_not_yet() -> None:
    attempts: list[int] = []

    def claim() -> bool:
        attempts.append(1)
        assert len(attempts) > 2
        return True

    assert eventually(claim, 5)


def test_gives_up_at_the_deadline_and_says_what_it_saw() -> None:
    started = time.monotonic()
    with pytest.raises(NeverTrueError, match=r"not within 0\.05 s: the sky falls; last value: 0"):
        eventually(lambda: 0, 0.05, claim="the sky falls")
    assert time.monotonic() - started < 20


def test_an_unexpected_error_is_not_swallowed() -> None:
    def broken() -> bool:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        eventually(broken, 5)


async def test_waits_for_coroutines_without_blocking_the_loop() -> None:
    values = iter([False, True])

    async def claim() -> bool:
        return next(values)

    assert await aeventually(claim, 5)


async def test_a_late_coroutine_claim_fails_with_its_last_error() -> None:
    async def claim() -> bool:
        raise AssertionError("still no")

    with pytest.raises(NeverTrueError, match="still no"):
        await aeventually(claim, 0.05)
