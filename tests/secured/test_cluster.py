"""A Redis Cluster whose nodes speak TLS and name the addresses at which they do."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from relay import relayed
from tidemill_feature.adapters.cluster_store import ring_store
from tidemill_feature.adapters.redis_store import Move
from tidemill_features.layout import Checkpoint
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import redis_client
from tidemill_runtime.settings import RedisSettings
from tidemill_testkit.authority import LOOPBACK, Authority
from tidemill_testkit.eventually import eventually
from tidemill_testkit.redis_cluster import running_cluster

pytestmark = pytest.mark.servers

HERE = Partition("events.paid", 0)
LAST = Checkpoint(bytes(16), 7, 0, 0, frozenset())


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder / "ours", "tidemill tests"), Authority(folder / "stranger", "somebody else")


@pytest.fixture(scope="module")
def addresses(authorities: tuple[Authority, Authority], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the nodes' addresses, by comma; each tells clients of the others where they speak TLS."""
    pair = authorities[0].pair("nodes")
    with ExitStack() as opened:
        cluster = opened.enter_context(running_cluster(tmp_path_factory.mktemp("nodes")))
        ports = [opened.enter_context(relayed(node.port, pair)) for node in cluster.nodes]
        for node, port in zip(cluster.nodes, ports, strict=True):
            # It is said of a node at its start alone.
            node.client().config_set("cluster-announce-port", port)
            node.client().config_rewrite()
            node.kill()
            node.start()

        def told() -> bool:
            heard = [node.client().cluster("slots") for node in cluster.nodes]
            return all({primary[1] for _, _, primary, *_ in ranges} == {*ports} for ranges in heard)

        eventually(told, 20, claim="every node has heard of the others' addresses")
        cluster.settled()
        yield ",".join(f"{LOOPBACK}:{port}" for port in ports)


def settings(addresses: str, authority: Authority) -> RedisSettings:
    return RedisSettings(url=f"rediss://{addresses}/0", cluster=True, ssl_ca_file=str(authority.file))


def shard(offset: int) -> bytes:
    """Return a shard's header, with the offset in its place, and nothing behind."""
    return b"TMRG\1\0\0\0" + bytes(16) + struct.pack("<qqqqq", 0, offset, 0, 0, 0)


async def test_shards_on_every_node_are_written_and_read_over_tls(
    addresses: str, authorities: tuple[Authority, Authority], redis_namespace: str
) -> None:
    shards = {b"tm1:{%s:view:%d}:60:0" % (redis_namespace.encode(), n): shard(n) for n in range(60)}
    async with redis_client(settings(addresses, authorities[0])) as client:
        store = ring_store(client, redis_namespace, "g")
        assert await store.watch([HERE]) == {HERE: None}
        assert await store.flush([Move(HERE, None, LAST)], shards.items()) == {}
        assert await store.shards([*shards]) == [*shards.values()]
        assert await store.checkpoints([HERE]) == {HERE: LAST}
        nodes: Any = client
        assert sorted(str(node.port) for node in nodes.get_primaries()) == sorted(
            address.rpartition(":")[2] for address in addresses.split(",")
        )


async def test_a_cluster_whose_certificates_nobody_known_has_signed_is_not_talked_to(
    addresses: str, authorities: tuple[Authority, Authority], redis_namespace: str
) -> None:
    async with redis_client(settings(addresses, authorities[1])) as client:
        with pytest.raises(Retryable, match="certificate"):
            await ring_store(client, redis_namespace, "g").watch([HERE])
