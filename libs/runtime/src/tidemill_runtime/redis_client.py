"""Redis, alone or as a cluster: a client from the settings, and commands sent without detours."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import AskError, ClusterError, RedisClusterException, TryAgainError
from redis.exceptions import ConnectionError as RedisDownError

from tidemill_runtime.settings import RedisSettings

Client: TypeAlias = Redis | RedisCluster
_SENT_BYTES = 512 * 1024


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
        raise RedisDownError(f"the cluster: {error}") from error
    except AttributeError as error:
        # A command that fails on a node closes the connections of others with it, one that is just being opened too: it
        # is written to all the same, through a writer that is gone.
        if (error.obj, error.name) != (None, "writelines"):
            raise
        raise RedisDownError("the cluster: the connection was closed while it was opened") from error


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
