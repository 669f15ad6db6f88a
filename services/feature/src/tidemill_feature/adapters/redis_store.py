"""Rings and checkpoints in Redis. A flush writes everything, or nothing where a checkpoint is not what it should be.

One connection watches the checkpoints of the assignment from one flush to the next, so that a flush is one trip:

    MULTI · MSET shards, in pieces · SET checkpoints · EXEC · WATCH checkpoints · MGET checkpoints

Whoever else writes a watched checkpoint makes EXEC do nothing: a worker that lost its partition (a zombie) never
replaces newer shards. A broken connection is opened anew and compares first, which finds writes that Redis lost, and
commits whose answer was. No script: Lua interns every argument under a hash of every 32nd byte, the same for most
shards, and a flush of 3,000 of them took over five seconds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    ExecAbortError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    WatchError,
)
from redis.exceptions import (
    ConnectionError as RedisDownError,
)
from redis.exceptions import (
    TimeoutError as RedisSlowError,
)
from tidemill_features.layout import CHECKPOINT_PREFIX, Checkpoint, LayoutError, checkpoint_key
from tidemill_runtime.errors import Fatal, Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import as_outage, send
from tidemill_runtime.redis_reads import fetch_many
from tidemill_runtime.refusals import advice

# Shards that one command writes.
_PIECE = 512


Pairs: TypeAlias = Iterable[tuple[bytes, bytes]]


class Move(NamedTuple):
    """A partition's checkpoint: what Redis must hold, and what it shall hold (None: the same)."""

    partition: Partition
    held: Checkpoint | None
    next: Checkpoint | None


# The client says `WatchError` also where the connection that watched was lost.
_PASSING = (
    RedisDownError,
    RedisSlowError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    ExecAbortError,
    WatchError,
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the library's errors into the runtime's: an outage or a full store is waited out, all else is fatal."""
    try:
        with as_outage():
            yield
    except _PASSING as error:
        raise Retryable(f"Redis: {error}{advice(error)}") from error
    except LayoutError as error:
        raise Fatal(f"Redis holds what this version cannot read: {error}") from error
    except RedisError as error:
        raise Fatal(f"Redis refused: {error}") from error


class RedisStore:
    """The rings of one project and worker group; `flush` is for one caller at a time."""

    def __init__(self, redis: Redis, project: str, group: str) -> None:
        self._redis: Any = redis
        self._project = project
        self._group = group
        # The connection that watches (None: to be opened), and what each checkpoint was once it did.
        self._watching: Any = None
        self._seen: dict[bytes, bytes | None] = {}

    async def watch(self, partitions: Sequence[Partition]) -> dict[Partition, Checkpoint | None]:
        """Return the stored checkpoint of each partition, and watch them for the next flush."""
        self._seen = dict.fromkeys(map(self._key, partitions))
        if not partitions:
            return {}
        with translated():
            await self._arm()
            return {partition: _unpacked(self._seen[self._key(partition)]) for partition in partitions}

    async def checkpoints(self, partitions: Sequence[Partition]) -> dict[Partition, Checkpoint | None]:
        """Return the stored checkpoint of each partition."""
        with translated():
            raws = await self._redis.mget([self._key(partition) for partition in partitions])
            return {partition: _unpacked(raw) for partition, raw in zip(partitions, raws, strict=True)}

    async def shards(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return stored shards, None where there is none; they include what checkpoints among the keys tell of."""
        with translated():
            return await fetch_many(self._redis, keys, stamps=CHECKPOINT_PREFIX)

    async def flush(self, moves: Sequence[Move], shards: Pairs) -> dict[Partition, Checkpoint | None]:
        """Write shards, as keys with their values, and checkpoints.

        Returns what Redis holds instead where it refused, nothing where it wrote.
        """
        keys = [self._key(move.partition) for move in moves]
        held = [move.held for move in moves]
        wanted = [move.next or move.held for move in moves]
        with translated():
            reopened = self._watching is None
            if reopened:
                await self._arm()
            # As what they say, not as bytes: they may have been written in an older format.
            found = [_unpacked(self._seen[key]) for key in keys]
            if found != held:
                # An earlier attempt, whose answer was lost, may have written everything.
                return {} if reopened and found == wanted else _by_partition(moves, found)
            changed = {k: new.pack() for k, old, new in zip(keys, held, wanted, strict=True) if new != old and new}
            if await self._write(changed, shards):
                return {}
            return _by_partition(moves, [_unpacked(self._seen[key]) for key in keys])

    async def forget(self, partitions: Sequence[Partition]) -> None:
        """Delete checkpoints; whoever still watches one of them is refused."""
        if partitions:
            with translated():
                await self._redis.delete(*map(self._key, partitions))

    async def run_id(self) -> str:
        """Return what names this run of the Redis server."""
        with translated():
            return str((await self._redis.info("server"))["run_id"])

    async def close(self) -> None:
        """Give up the watching connection."""
        await self._drop()

    async def _arm(self) -> None:
        """Watch on a fresh connection."""
        await self._drop()
        self._watching = await self._redis.connection_pool.get_connection()
        await self._exchange([])

    async def _write(self, points: Mapping[bytes, bytes], shards: Pairs) -> bool:
        """Write in one transaction; False where a watched checkpoint was changed, so that nothing was written."""
        checkpoints = [("SET", key, raw) for key, raw in points.items()]
        commands: Iterable[Sequence[Any]] = chain([("MULTI",)], _sets(shards), checkpoints, [("EXEC",)])
        executed = (await self._exchange(commands))[-1]
        for answer in executed or ():
            if isinstance(answer, RedisError):
                raise answer
        return executed is not None

    async def _exchange(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        """Send commands in one go, watch for the next time, and return the answers; raise one that is an error."""
        keys = list(self._seen)
        connection = self._watching
        try:
            sent = await send(connection, chain(commands, [("WATCH", *keys), ("MGET", *keys)]))
            answers = [await connection.read_response() for _ in range(sent)]
        except BaseException:
            # Answers that nobody read would be taken for those of the next flush.
            await self._drop()
            raise
        self._seen = dict(zip(keys, answers.pop(), strict=True))
        return answers[:-1]

    async def _drop(self) -> None:
        connection, self._watching = self._watching, None
        if connection is not None:
            await connection.disconnect()
            await self._redis.connection_pool.release(connection)

    def _key(self, partition: Partition) -> bytes:
        return checkpoint_key(self._project, self._group, partition.topic, partition.number)


def _sets(shards: Pairs) -> Iterator[Sequence[Any]]:
    """Yield the commands that write shards, which are dumped as they are sent."""
    pairs = iter(shards)
    while piece := list(chain.from_iterable(islice(pairs, _PIECE))):
        yield ["MSET", *piece]


def _unpacked(raw: bytes | None) -> Checkpoint | None:
    return None if raw is None else Checkpoint.unpack(raw)


def _by_partition(moves: Sequence[Move], points: Sequence[Checkpoint | None]) -> dict[Partition, Checkpoint | None]:
    return {move.partition: point for move, point in zip(moves, points, strict=True)}
