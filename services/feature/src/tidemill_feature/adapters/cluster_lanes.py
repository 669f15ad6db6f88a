"""One lane per node of a Redis Cluster: shards written there, each only over an older one, and then a mark.

The shards of a flush lie on all nodes and its checkpoint on one, and no transaction spans them. So each shard is
guarded by itself: it is put aside and takes the stored one's place only if that includes less of the same log. Both are
a function of the log up to their offsets, so that whoever came further is right.

A mark is a copy of the checkpoint, on every node, written behind the shards of the same flush. A node that lost writes
(started again without them, or succeeded by a replica that had not got them) has lost its newest mark too.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisDownError
from redis.exceptions import NoScriptError
from tidemill_features.layout import Checkpoint
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import send

# KEYS: the shard, and where the new one was put aside. Offsets are compared as numbers of eight bytes, the last first;
# a shard's header holds the topic id in its bytes 8 to 24 and the next offset in 32 to 40.
_TAKE_PLACE = """
local held = redis.call('GETRANGE', KEYS[1], 0, 39)
local new = redis.call('GETRANGE', KEYS[2], 0, 39)
if #new < 40 then
  return redis.error_reply('the new shard is gone')
end
if #held == 40 and string.sub(held, 9, 24) == string.sub(new, 9, 24)
    and string.reverse(string.sub(held, 33, 40)) > string.reverse(string.sub(new, 33, 40)) then
  redis.call('DEL', KEYS[2])
  return 0
end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('PERSIST', KEYS[1])
return 1
"""
# What a worker that died left aside goes away by itself.
_ASIDE_MS = 60_000


def behind(mark: Checkpoint | None, known: Checkpoint | None) -> bool:
    """Say whether a mark tells of less than it should."""
    return known is not None and (mark is None or mark.next_offset < known.next_offset)


class Lane:
    """One node, on a connection of its own: one that the client made for others may be made anew unseen."""

    def __init__(self, node: Any, tag: bytes, group: str, writer: str) -> None:
        self._node = node
        self._prefix = b"tm1:mark:{%s}:%s:" % (tag, group.encode())
        self._aside = f":{writer}".encode()
        self._connection: Any = None
        self._script = b""

    async def lost(self, known: Mapping[Partition, Checkpoint | None]) -> bool:
        """Open the connection where it is not, and say whether a mark tells of less than is known."""
        if self._connection is not None:
            return False
        found = await self.open(list(known))
        return any(behind(mark, known[place]) for place, mark in found.items())

    async def open(self, partitions: Sequence[Partition]) -> dict[Partition, Checkpoint | None]:
        """Return the marks of the node."""
        await self.close()
        connection = self._node.connection_class(**self._node.connection_kwargs)
        await connection.connect()
        self._connection = connection
        script, *raws = await self._ask([("SCRIPT", "LOAD", _TAKE_PLACE), *(("GET", self._key(p)) for p in partitions)])
        self._script = script
        marks = [None if raw is None else Checkpoint.unpack(raw) for raw in raws]
        return dict(zip(partitions, marks, strict=True))

    async def write(self, shards: Mapping[bytes, bytes], marks: Mapping[Partition, Checkpoint]) -> None:
        """Write shards over older ones, and then the marks, in one trip."""
        commands: list[tuple[Any, ...]] = []
        for key, raw in shards.items():
            aside = key + self._aside
            commands.append(("SET", aside, raw, "PX", _ASIDE_MS))
            commands.append(("EVALSHA", self._script, 2, key, aside))
        commands.extend(("SET", self._key(place), mark.pack()) for place, mark in marks.items())
        await self._ask(commands)

    async def close(self) -> None:
        """Give up the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect()

    async def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection = self._connection
        try:
            return [await connection.read_response() for _ in range(await send(connection, commands))]
        except NoScriptError as error:
            await self.close()
            raise RedisDownError(f"its scripts were flushed: {error}") from error
        except BaseException:
            # Answers that nobody read would be taken for those of the next trip. A mark may be newer now than shards
            # before it; the checkpoint is not.
            await self.close()
            raise

    def _key(self, partition: Partition) -> bytes:
        return self._prefix + f"{partition.topic}:{partition.number}".encode()


def tags_of(slots: Mapping[int, Sequence[Any]]) -> dict[str, bytes]:
    """Return for each primary's name a hash tag whose slot it serves; of a slot, `slots` lists the primary first."""
    wanted = {nodes[0].name for nodes in slots.values()}
    tags: dict[str, bytes] = {}
    for number in count():
        tag = b"%d" % number
        nodes = slots.get(key_slot(tag))
        if nodes:
            tags.setdefault(nodes[0].name, tag)
        if len(tags) == len(wanted):
            return tags
    raise AssertionError("unreachable")


def lowest(checkpoint: Checkpoint | None, marks: Iterable[Checkpoint | None]) -> Checkpoint | None:
    """Return how far everything is there: the checkpoint, or the mark that is furthest behind it."""
    found = checkpoint
    for mark in marks:
        if behind(mark, found):
            found = mark
    return found
