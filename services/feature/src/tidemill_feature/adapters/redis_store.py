"""Rings and checkpoints in Redis. Everything is written by one script, or nothing is.

The script compares each partition's checkpoint with what the worker last knew and writes only where all are the same:
a worker that lost its partition (a zombie) never replaces newer shards, and writes that Redis lost are noticed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import (
    ConnectionError as RedisDownError,
)
from redis.exceptions import (
    TimeoutError as RedisSlowError,
)
from tidemill_features.layout import Checkpoint, LayoutError, checkpoint_key
from tidemill_runtime.errors import Fatal, Retryable
from tidemill_runtime.positions import Partition

_KEYS_PER_TRIP = 2_000

# KEYS: checkpoints, then shards. ARGV: number of checkpoints, what each must be now, what each becomes ('': stays),
# then the shards. Returns nothing when it wrote, else what the checkpoints are. A value may not exceed Lua's stack.
_FLUSH = """
local points = tonumber(ARGV[1])
local held, same = {}, true
for i = 1, points do
  held[i] = redis.call('GET', KEYS[i]) or ''
  if held[i] ~= ARGV[1 + i] then same = false end
end
if not same then return held end
local shards = #KEYS - points
for first = 1, shards, 1000 do
  local pairs = {}
  for i = first, math.min(first + 999, shards) do
    pairs[#pairs + 1] = KEYS[points + i]
    pairs[#pairs + 1] = ARGV[1 + 2 * points + i]
  end
  redis.call('MSET', unpack(pairs))
end
for i = 1, points do
  if ARGV[1 + points + i] ~= '' then redis.call('SET', KEYS[i], ARGV[1 + points + i]) end
end
return nil
"""


class Move(NamedTuple):
    """A partition's checkpoint: what Redis must hold, and what it shall hold (None: the same)."""

    partition: Partition
    held: Checkpoint | None
    next: Checkpoint | None


@contextmanager
def translated() -> Iterator[None]:
    """Turn the library's errors into the runtime's: an outage or a full store is waited out, all else is fatal."""
    try:
        yield
    except (RedisDownError, RedisSlowError, BusyLoadingError, OutOfMemoryError, ReadOnlyError) as error:
        raise Retryable(f"Redis: {error}") from error
    except LayoutError as error:
        raise Fatal(f"Redis holds what this version cannot read: {error}") from error
    except RedisError as error:
        raise Fatal(f"Redis refused: {error}") from error


class RedisStore:
    """The rings of one project and worker group."""

    def __init__(self, redis: Redis, project: str, group: str) -> None:
        self._redis: Any = redis
        self._project = project
        self._group = group
        self._sha = ""

    async def checkpoints(self, partitions: Sequence[Partition]) -> dict[Partition, Checkpoint | None]:
        """Return the stored checkpoint of each partition."""
        if not partitions:
            return {}
        with translated():
            raws = await self._redis.mget([self._key(partition) for partition in partitions])
            return {
                partition: None if raw is None else Checkpoint.unpack(raw)
                for partition, raw in zip(partitions, raws, strict=True)
            }

    async def shards(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return stored shards, None where there is none."""
        raws: list[bytes | None] = []
        with translated():
            for first in range(0, len(keys), _KEYS_PER_TRIP):
                raws += await self._redis.mget(keys[first : first + _KEYS_PER_TRIP])
        return raws

    async def flush(self, moves: Sequence[Move], shards: Mapping[bytes, bytes]) -> dict[Partition, Checkpoint | None]:
        """Write shards and checkpoints; return what Redis holds instead where it refused, nothing where it wrote."""
        wanted = [move.next.pack() if move.next else b"" for move in moves]
        keys = [self._key(move.partition) for move in moves]
        held = [move.held.pack() if move.held else b"" for move in moves]
        with translated():
            found = await self._run(
                len(keys) + len(shards), *keys, *shards, len(keys), *held, *wanted, *shards.values()
            )
            if found is None or _is_written(found, held, wanted):
                return {}
            return {
                move.partition: Checkpoint.unpack(raw) if raw else None for move, raw in zip(moves, found, strict=True)
            }

    async def run_id(self) -> str:
        """Return what names this run of the Redis server."""
        with translated():
            return str((await self._redis.info("server"))["run_id"])

    async def _run(self, count: int, *arguments: Any) -> Any:
        if self._sha:
            try:
                return await self._redis.evalsha(self._sha, count, *arguments)
            except NoScriptError:
                self._sha = ""
        self._sha = await self._redis.script_load(_FLUSH)
        return await self._redis.evalsha(self._sha, count, *arguments)

    def _key(self, partition: Partition) -> bytes:
        return checkpoint_key(self._project, self._group, partition.topic, partition.number)


def _is_written(found: Sequence[bytes], held: Sequence[bytes], wanted: Sequence[bytes]) -> bool:
    """Say whether an earlier attempt, whose answer was lost, had written everything."""
    return all(raw == (new or old) for raw, old, new in zip(found, held, wanted, strict=True))
