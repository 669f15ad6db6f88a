"""Sequence numbers of the idempotent client, mended after a batch that Kafka refused for its size.

The broker takes a producer's batches of a partition without a gap in their numbers. aiokafka numbers a batch when it is
first sent, and leaves the gap where the broker refuses it: whatever came next failed as out of order.
"""

import asyncio
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import MessageSizeTooLargeError


def reuse_refused(client: Any) -> None:
    """Let an aiokafka producer give the numbers of a refused batch to the one after it."""
    accumulator, numbers = client._message_accumulator, client._txn_manager
    take = accumulator._pop_batch
    # The batch that was last sent to each partition, unless it was sent again: an answer that was lost may have been
    # an acknowledgement.
    sent: dict[TopicPartition, tuple[asyncio.Future[Any], int]] = {}

    def take_after_refused(place: TopicPartition) -> Any:
        # One batch of a partition is under way at a time: the last one has ended, and nothing was numbered since.
        future, count = sent.pop(place, (None, 0))
        if future is not None and future.done() and isinstance(future.exception(), MessageSizeTooLargeError):
            numbers.increment_sequence_number(place, -count)
        batch = take(place)
        if batch.retry_count == 1:
            sent[place] = (batch.future, batch.record_count)
        return batch

    accumulator._pop_batch = take_after_refused
