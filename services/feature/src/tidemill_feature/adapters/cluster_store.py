"""Rings and checkpoints in a Redis Cluster: what `RedisStore` guarantees, without a transaction over all nodes.

A flush writes the shards, node by node, each only over one that includes less (`cluster_lanes`), and a mark on every
node; then the checkpoints, all of which share a slot, in one transaction as ever. Shards may so be ahead of their
checkpoint, never behind it: what they include is skipped when the log is read again.

Where a node has lost its mark, the checkpoints are set back to what every node still holds, when the store is watched
next; the worker reads the log again from there. The same happens when slots were moved between nodes, since a mark
speaks for the node that it lies on.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast
from uuid import uuid4

from redis.asyncio import Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterError
from redis.exceptions import ConnectionError as RedisDownError
from redis.exceptions import TimeoutError as RedisSlowError
from tidemill_features.layout import Checkpoint
from tidemill_runtime.errors import StateLost
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import as_outage

from tidemill_feature.adapters.cluster_lanes import Lane, lowest, tags_of
from tidemill_feature.adapters.redis_store import Move, Pairs, RedisStore, translated

_SET_BACK_ATTEMPTS = 3

T = TypeVar("T")


def ring_store(redis: Redis | RedisCluster, project: str, group: str) -> RedisStore:
    """Return the store for what the settings name: one Redis, or a cluster."""
    if isinstance(redis, RedisCluster):
        return ClusterStore(redis, project, group)
    return RedisStore(redis, project, group)


class ClusterStore(RedisStore):
    """The rings of one project and worker group in a cluster; `flush` is for one caller at a time."""

    def __init__(self, cluster: RedisCluster, project: str, group: str) -> None:
        super().__init__(cast(Redis, cluster), project, group)
        self._cluster: Any = cluster
        self._writer = uuid4().hex[:12]
        # By the node's name, made for the topology that the tags tell of, and that for the client's table of slots.
        self._lanes: dict[str, Lane] = {}
        self._tags: dict[str, bytes] = {}
        self._slots: Any = None
        # What every node's marks were when they were last read, or written on all of them.
        self._known: dict[Partition, Checkpoint | None] = {}

    async def watch(self, partitions: Sequence[Partition]) -> dict[Partition, Checkpoint | None]:
        """Return how far all nodes hold each partition, set its checkpoint to that, and watch it for the next flush."""
        self._known = dict.fromkeys(partitions)
        found = await super().watch(partitions)
        if not partitions:
            return found
        with translated():
            await self._make_lanes()
            marks = await self._on_all(lane.open(partitions) for lane in self._lanes.values())
            for _ in range(_SET_BACK_ATTEMPTS):
                held = {place: lowest(found[place], [mark[place] for mark in marks]) for place in partitions}
                wrong = {place: point for place, point in held.items() if point != found[place]}
                if not wrong:
                    self._known = held
                    return held
                commands = [self._set_back(place, point) for place, point in wrong.items()]
                await self._exchange([("MULTI",), *commands, ("EXEC",)])
                found = {place: _unpacked(self._seen[self._key(place)]) for place in partitions}
            raise RedisDownError("the checkpoints are being written by another worker")

    async def checkpoints(self, partitions: Sequence[Partition]) -> dict[Partition, Checkpoint | None]:
        """Return how far all nodes hold each partition."""
        found = await super().checkpoints(partitions)
        with translated():
            lanes = (await self._topology())[1]
            try:
                marks = await self._on_all(lane.open(partitions) for lane in lanes.values())
            finally:
                await asyncio.gather(*(lane.close() for lane in lanes.values()))
        return {place: lowest(found[place], [mark[place] for mark in marks]) for place in partitions}

    async def flush(self, moves: Sequence[Move], shards: Pairs) -> dict[Partition, Checkpoint | None]:
        """Write shards and checkpoints; return what Redis holds instead where it refused, nothing where it wrote.

        Raises `StateLost` where a node has lost writes of an earlier flush.
        """
        with translated():
            await self._make_lanes()
            if any(await self._on_all(lane.lost(self._known) for lane in self._lanes.values())):
                raise StateLost("a node of the cluster has lost writes, or slots were moved")
        return await super().flush(moves, shards)

    async def run_id(self) -> str:
        """Return what names this run of all primaries: another one where any of them is another process."""
        with translated(), as_outage():
            infos = await self._cluster.info("server", target_nodes=RedisCluster.PRIMARIES)
        return " ".join(sorted(str(info["run_id"]) for info in infos.values()))

    async def close(self) -> None:
        """Give up all connections."""
        await super().close()
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))

    async def _write(self, points: Mapping[bytes, bytes], shards: Pairs) -> bool:
        """Write shards and marks on every node, then the checkpoints where nobody else wrote them."""
        places = {self._key(place): place for place in self._known}
        marks = {places[key]: Checkpoint.unpack(raw) for key, raw in points.items()}
        by_node: dict[str, dict[bytes, bytes]] = {name: {} for name in self._lanes}
        for key, raw in shards:
            name = self._node(key).name
            if name not in by_node:
                raise RedisDownError("slots are being moved")
            by_node[name][key] = raw
        await self._on_all(lane.write(by_node[name], marks) for name, lane in self._lanes.items())
        self._known.update(marks)
        return await super()._write(points, ())

    async def _arm(self) -> None:
        """Watch on a fresh connection to the node that holds the checkpoints."""
        await self._drop()
        with as_outage():
            await self._cluster.initialize()
            node = self._node(next(iter(self._seen)))
        self._watching = node.connection_class(**node.connection_kwargs)
        await self._on_all([self._watching.connect()])
        await self._exchange([])

    async def _exchange(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        (answers,) = await self._on_all([super()._exchange(commands)])
        return answers

    async def _drop(self) -> None:
        connection, self._watching = self._watching, None
        if connection is not None:
            await connection.disconnect()

    async def _on_all(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Return all results once all have ended; where one met an outage, ask anew who serves which slots."""
        results = await asyncio.gather(*work, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if not errors:
            return cast(list[T], results)
        if isinstance(errors[0], RedisDownError | RedisSlowError | AskError | ClusterError):
            with as_outage():
                await self._cluster.nodes_manager.initialize()
        with as_outage():
            raise errors[0]

    async def _make_lanes(self) -> None:
        """Make lanes where there are none, or the topology is another."""
        with as_outage():
            await self._cluster.initialize()
        if self._cluster.nodes_manager.slots_cache is self._slots:
            return
        tags, lanes = await self._topology()
        self._slots = self._cluster.nodes_manager.slots_cache
        if tags != self._tags:
            await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
            self._tags, self._lanes = tags, lanes

    async def _topology(self) -> tuple[dict[str, bytes], dict[str, Lane]]:
        with as_outage():
            await self._cluster.initialize()
        slots = self._cluster.nodes_manager.slots_cache
        nodes, tags = {found[0].name: found[0] for found in slots.values()}, tags_of(slots)
        group = f"{self._project}:{self._group}"
        return tags, {name: Lane(nodes[name], tag, group, self._writer) for name, tag in tags.items()}

    def _node(self, key: bytes) -> Any:
        with as_outage():
            return self._cluster.nodes_manager.get_node_from_slot(key_slot(key))

    def _set_back(self, place: Partition, point: Checkpoint | None) -> tuple[Any, ...]:
        key = self._key(place)
        return ("DEL", key) if point is None else ("SET", key, point.pack())


def _unpacked(raw: bytes | None) -> Checkpoint | None:
    return None if raw is None else Checkpoint.unpack(raw)
