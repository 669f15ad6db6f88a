"""Many keys of Redis, alone or as a cluster, in one trip per node, over lines that stay open."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisDownError
from redis.exceptions import TimeoutError as RedisSlowError

from tidemill_runtime.redis_client import as_outage, packed
from tidemill_runtime.redis_lines import Line

# A long trip goes in pieces, so that a short one need not wait for all of it.
_KEYS_PER_TRIP = 2_000
_ATTEMPTS = 2
# Times that a cluster is read while its stamps move on.
_LOOKS = 3


class _Lines:
    """The lines of one client, by node."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._opening: dict[str, asyncio.Task[Line]] = {}

    async def to(self, node: str, open_line: Callable[[Line | None], Awaitable[Line]]) -> Line:
        """Return the line to a node; of callers that find none one opens it, and all have its error.

        `open_line` is given the line that was lost, None at first.
        """
        line = self._lines.get(node)
        if line is not None and line.lost is None:
            return line
        opening = self._opening.get(node)
        if opening is None:
            opening = self._opening[node] = asyncio.ensure_future(self._opened(node, open_line))
            # Also where all have given up, its error is looked at.
            opening.add_done_callback(_seen)
        # A caller that gives up leaves it to the others.
        return await asyncio.shield(opening)

    async def _opened(self, node: str, open_line: Callable[[Line | None], Awaitable[Line]]) -> Line:
        try:
            line = self._lines[node] = await open_line(self._lines.pop(node, None))
        finally:
            del self._opening[node]
        return line


def _seen(opening: "asyncio.Task[Line]") -> None:
    if not opening.cancelled():
        opening.exception()


_lines_of: WeakKeyDictionary[Any, _Lines] = WeakKeyDictionary()


async def fetch_many(redis: Any, keys: Sequence[bytes], *, stamps: bytes | None = None) -> list[bytes | None]:
    """Return the values of keys, None where there is none. Raises redis-py's errors.

    On a cluster every node is asked once, for all slots at the same time; keys whose slot is just moving are asked for
    one by one.

    `stamps`: what those keys begin with that tell how far the others were written, and that every write moves along.
    One Redis is read as of one instant then, in a transaction where a stamp moved during the trip. Of a cluster no
    stamp tells of more than the other values include; of less, where it moves again and again, or is still to be moved.
    """
    lines = _lines_of.get(redis)
    if lines is None:
        lines = _lines_of[redis] = _Lines()
    if not isinstance(redis, RedisCluster):
        return await _from_one(redis, lines, keys, stamps)
    with as_outage():
        await redis.initialize()
        return await _from_cluster(redis, lines, keys, stamps)


async def _from_one(redis: Any, lines: _Lines, keys: Sequence[bytes], stamps: bytes | None) -> list[bytes | None]:
    pool = redis.connection_pool

    async def opened(lost: Line | None) -> Line:
        if lost is not None:
            await lost.connection.disconnect(nowait=True)
            await pool.release(lost.connection)
        return Line(await pool.get_connection())

    for attempt in range(_ATTEMPTS):
        try:
            line = await lines.to("", opened)
            if not 0 < len(keys) <= _KEYS_PER_TRIP:
                return await _from_pieces(line, keys, stamps)
            (answer,) = await line.ask([packed(("MGET", *keys))])
            found: list[bytes | None] = _checked(answer)
        except RedisDownError:
            # The server may be there again.
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return found
    raise AssertionError("unreachable")


async def _from_pieces(line: Line, keys: Sequence[bytes], stamps: bytes | None) -> list[bytes | None]:
    """Ask piece by piece, the stamps before and after all else; again at once where they differ."""
    stamped = list(dict.fromkeys(keys[place] for place in _stamped(keys, stamps)))
    found: list[bytes | None] = []
    for piece in _pieces([*stamped, *keys, *stamped]):
        (answer,) = await line.ask([piece])
        found += _checked(answer)
    first, last = len(stamped), len(found) - len(stamped)
    if found[:first] == found[last:]:
        return found[first:last]
    # A trip goes out as a whole: nobody else's commands come between these.
    *queued, executed = await line.ask([packed(("MULTI",)), *_pieces(keys), packed(("EXEC",))])
    for answer in queued:
        _checked(answer)
    return list(chain.from_iterable(map(_checked, _checked(executed))))


def _pieces(keys: Sequence[bytes]) -> Iterator[bytes]:
    for first in range(0, len(keys), _KEYS_PER_TRIP):
        yield packed(("MGET", *keys[first : first + _KEYS_PER_TRIP]))


def _checked(answer: Any) -> Any:
    """Return an answer. Raises what it says where it is an error."""
    if isinstance(answer, RedisError):
        raise answer
    return answer


def _stamped(keys: Sequence[bytes], stamps: bytes | None) -> list[int]:
    """Return the places of the keys that are stamps."""
    return [] if stamps is None else [place for place, key in enumerate(keys) if key.startswith(stamps)]


async def _from_cluster(redis: Any, lines: _Lines, keys: Sequence[bytes], stamps: bytes | None) -> list[bytes | None]:
    for attempt in range(_ATTEMPTS):
        try:
            return await _behind_stamps(redis, lines, keys, _stamped(keys, stamps))
        except (RedisDownError, RedisSlowError):
            # The node may have a successor.
            await redis.nodes_manager.initialize()
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


async def _behind_stamps(
    redis: Any, lines: _Lines, keys: Sequence[bytes], stamped: Sequence[int]
) -> list[bytes | None]:
    """Ask all nodes, and before that for the stamps: they lie on other nodes than what they tell of."""
    if not 0 < len(stamped) < len(keys):
        return await _from_nodes(redis, lines, keys)
    after = await _from_nodes(redis, lines, [keys[place] for place in stamped])
    for _ in range(_LOOKS):
        before, found = after, await _from_nodes(redis, lines, keys)
        after = [found[place] for place in stamped]
        if after == before:
            break
    for place, value in zip(stamped, before, strict=True):
        found[place] = value
    return found


async def _from_nodes(redis: Any, lines: _Lines, keys: Sequence[bytes]) -> list[bytes | None]:
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
    moving = await asyncio.gather(*(_trip(lines, nodes[name], keys, groups, found) for name, groups in by_node.items()))
    for place in chain.from_iterable(moving):
        found[place] = await redis.get(keys[place])
    return found


async def _trip(
    lines: _Lines, node: Any, keys: Sequence[bytes], groups: Sequence[Sequence[int]], found: list[bytes | None]
) -> list[int]:
    """Ask one node, an MGET per slot in one go; return the places of keys that it does not have for now."""

    async def opened(lost: Line | None) -> Line:
        if lost is not None:
            await lost.connection.disconnect(nowait=True)
            node.release(lost.connection)
        connection = node.acquire_connection()
        try:
            await connection.connect()
            return Line(connection)
        except BaseException:
            node.release(connection)
            raise

    line = await lines.to(node.name, opened)
    answers = await line.ask([packed(("MGET", *(keys[place] for place in places))) for places in groups])
    moving: list[int] = []
    for places, values in zip(groups, answers, strict=True):
        if isinstance(values, (AskError, TryAgainError)):
            moving += places
        elif isinstance(values, RedisError):
            raise values
        else:
            for place, value in zip(places, values, strict=True):
                found[place] = value
    return moving
