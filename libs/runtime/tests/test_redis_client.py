"""Errors of the cluster's client that its library does not name."""

from typing import Any

import pytest
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisDownError
from tidemill_runtime.redis_client import as_outage


async def test_a_connection_that_another_command_closed_while_it_was_opened_is_an_outage() -> None:
    connection = Connection()
    await connection.disconnect()
    with pytest.raises(RedisDownError, match="closed while it was opened"), as_outage():
        await connection._send_packed_command([b"HELLO"])


def test_a_fault_of_our_own_is_none() -> None:
    nothing: Any = None
    with pytest.raises(AttributeError), as_outage():
        nothing.shards()
