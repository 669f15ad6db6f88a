"""Which sequence numbers are given again, without a Kafka."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownError
from tidemill_runtime.sequences import reuse_refused

PLACE = TopicPartition("t", 0)


@pytest.mark.parametrize(
    ("error", "tries", "given_again"),
    [
        (None, 1, []),
        (MessageSizeTooLargeError(), 1, [(PLACE, -3)]),
        # The answer to the first try was lost, and may have been that it is written.
        (MessageSizeTooLargeError(), 2, []),
        (UnknownError(), 1, []),
    ],
)
async def test_only_what_was_sent_once_and_refused_for_its_size_gives_its_numbers_again(
    error: KafkaError | None, tries: int, given_again: list[Any]
) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    batch = SimpleNamespace(future=future, record_count=3, retry_count=0)
    following = SimpleNamespace(future=asyncio.get_running_loop().create_future(), record_count=1, retry_count=0)
    pending: Iterator[SimpleNamespace] = iter([batch] * tries + [following] * 2)

    def pop(_place: TopicPartition) -> SimpleNamespace:
        taken = next(pending)
        taken.retry_count += 1
        return taken

    changes: list[Any] = []
    accumulator = SimpleNamespace(_pop_batch=pop)
    numbers = SimpleNamespace(increment_sequence_number=lambda *change: changes.append(change))
    reuse_refused(SimpleNamespace(_message_accumulator=accumulator, _txn_manager=numbers))
    for _ in range(tries):
        accumulator._pop_batch(PLACE)
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    for _ in range(2):
        accumulator._pop_batch(PLACE)
    assert changes == given_again
