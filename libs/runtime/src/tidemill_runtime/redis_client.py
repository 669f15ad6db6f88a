"""Redis, alone or as a cluster: a client from the settings, and many keys in one trip per node."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterError, RedisClusterException, TryAgainError
from redis.exceptions import ConnectionError as RedisDownError
from redis.exceptions import TimeoutError as RedisSlowError

from tidemill_runtime.settings import RedisSettings

Client: TypeAlias = Redis | RedisCluster
_KEYS_PER_TRIP = 2_000
_SENT_BYTES = 512 * 1024
_ATTEMPTS = 2
# Of a pool's connections: those that watch, and a few for commands besides reads.
_HELD_BY_OTHERS = 4
_gates: WeakKeyDictionary[Any, asyncio.Semaphore] = WeakKeyDictionary()


@asynccontextmanager
async def redis_client(settings: RedisSettings) -> AsyncIterator[Client]:
    """Lend a client, which connects at the first command: who begins while Redis is away waits as everybody does."""
    client: Client
    if settings.cluster:
        others = [ClusterNode(host, port) for host, port in settings.further_nodes()]
        client = RedisCluster.from_url(**settings.client_kwargs(), startup_nodes=others)
    else:
        client = Redis.from_url(**settings.client_kwargs())
    try:
        yield client
    finally:
        await client.aclose()


@contextmanager
def as_outage() -> Iterator[None]:
    """Turn what only a cluster's client says (slots move, nobody serves them) into that of a Redis that is away."""
    try:
        yield
    except (RedisClusterException, ClusterError, AskError, TryAgainError) as error:
        raise RedisDownError(f"the cluster: {error!r}") from error
    except AttributeError as error:
        # A command that fails on a node closes the connections of others with it, one that is just being opened too: it
        # is written to all the same, through a writer that is gone.
        if (error.obj, error.name) != (None, "writelines"):
            raise
        raise RedisDownError("the cluster: the connection was closed while it was opened") from error


async def fetch_many(redis: Any, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return the values of keys, None where there is none. Raises redis-py's errors.

    On a cluster every node is asked once, for all slots at the same time; keys whose slot is just moving are asked for
    one by one.
    """
    if not isinstance(redis, RedisCluster):
        async with _gate(redis, redis.connection_pool.max_connections):
            return await _from_one(redis, keys)
    with as_outage():
        await redis.initialize()
        async with _gate(redis, redis.get_primaries()[0].max_connections):
            return await _from_cluster(redis, keys)


def _gate(redis: Any, connections: int) -> asyncio.Semaphore:
    """Return what lets in as many trips as a pool has connections, less those that others hold: it refuses more."""
    gate = _gates.get(redis)
    if gate is None:
        gate = _gates[redis] = asyncio.Semaphore(max(1, connections - _HELD_BY_OTHERS))
    return gate


async def _from_one(redis: Any, keys: Sequence[bytes]) -> list[bytes | None]:
    pool = redis.connection_pool
    for attempt in range(_ATTEMPTS):
        connection = await pool.get_connection()
        try:
            found: list[bytes | None] = []
            for first in range(0, len(keys), _KEYS_PER_TRIP):
                await send(connection, [("MGET", *keys[first : first + _KEYS_PER_TRIP])])
                found += await connection.read_response()
        except BaseException as error:
            # Answers that nobody read would be taken for those of the next trip.
            await connection.disconnect(nowait=True)
            # A server that was started again has closed what lay in the pool.
            if not isinstance(error, RedisDownError) or attempt + 1 == _ATTEMPTS:
                raise
        else:
            return found
        finally:
            await pool.release(connection)
    raise AssertionError("unreachable")


async def send(connection: Any, commands: Iterable[Sequence[Any]]) -> int:
    """Send commands of texts, bytes and integers; return how many answers are to be read.

    They are taken and sent piece by piece: memory for all of them would be new every time, which costs more than they.
    """
    pieces: list[bytes] = []
    sent = waiting = 0
    for command in commands:
        sent += 1
        pieces.append(packed(command))
        waiting += len(pieces[-1])
        if waiting >= _SENT_BYTES:
            await connection.send_packed_command(pieces)
            pieces, waiting = [], 0
    if pieces:
        await connection.send_packed_command(pieces)
    return sent


def packed(command: Sequence[Any]) -> bytes:
    """Return a command as it is sent.

    >>> packed(("GET", b"k", 1))
    b'*3\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n$1\\r\\n1\\r\\n'

    The library spends microseconds on each of what may be thousands of arguments.
    """
    arguments = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    # Many have the same length.
    sizes = [*map(len, arguments)]
    heads = {size: b"\r\n$%d\r\n" % size for size in set(sizes)}
    parts = [b"\r\n"] * (2 * len(arguments) + 2)
    parts[0] = b"*%d" % len(arguments)
    parts[1:-1:2] = map(heads.__getitem__, sizes)
    parts[2:-1:2] = arguments
    return b"".join(parts)


async def _from_cluster(redis: Any, keys: Sequence[bytes]) -> list[bytes | None]:
    for attempt in range(_ATTEMPTS):
        try:
            return await _from_nodes(redis, keys)
        except (RedisDownError, RedisSlowError):
            # The node may have a successor.
            await redis.nodes_manager.initialize()
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


async def _from_nodes(redis: Any, keys: Sequence[bytes]) -> list[bytes | None]:
    found: list[bytes | None] = [None] * len(keys)
    by_slot: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        by_slot.setdefault(key_slot(key), []).append(place)
    nodes: dict[str, Any] = {}
    by_node: dict[str, list[list[int]]] = {}
    for slot, places in by_slot.items():
        node = redis.nodes_manager.get_node_from_slot(slot)
        nodes[node.name] = node
        by_node.setdefault(node.name, []).append(places)
    moving = await asyncio.gather(*(_trip(nodes[name], keys, groups, found) for name, groups in by_node.items()))
    for place in chain.from_iterable(moving):
        found[place] = await redis.get(keys[place])
    return found


async def _trip(
    node: Any, keys: Sequence[bytes], groups: Sequence[Sequence[int]], found: list[bytes | None]
) -> list[int]:
    """Ask one node, an MGET per slot in one go; return the places of keys that it does not have for now."""
    connection = node.acquire_connection()
    moving: list[int] = []
    try:
        commands = [("MGET", *(keys[place] for place in places)) for places in groups]
        await send(connection, commands)
        for places in groups:
            try:
                values = await connection.read_response()
            except (AskError, TryAgainError):
                moving += places
                continue
            for place, value in zip(places, values, strict=True):
                found[place] = value
    except BaseException:
        # Answers that nobody read would be taken for those of the next trip.
        await connection.disconnect(nowait=True)
        raise
    finally:
        node.release(connection)
    return moving
