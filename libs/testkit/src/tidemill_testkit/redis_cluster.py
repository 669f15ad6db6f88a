"""A Redis Cluster of three processes, from the very server that the local stack runs."""

import importlib
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidemill_testkit.eventually import eventually
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import LOOPBACK, free_port

SLOTS = 16_384
# A node's bus listens this far above its port.
BUS = 10_000


class ClusterNode:
    """One node; killed and started again it has lost its data, as a machine without a disk has."""

    def __init__(self, server: Path, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder
        options = {**node_options(port, folder), "appendonly": "no", "save": '""'}
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "redis.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        self._command = [str(server), str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, if it does not run, and wait until it answers."""
        if self._process is not None:
            return
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                dying_with_us(self._command),
                stdout=log,
                stderr=log,
            )
        _eventually(self.client().ping, claim=f"redis answers on {self.port}")

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def client(self) -> Any:
        """Return a client of this node alone."""
        return _client(self.port)


class RedisNodes:
    """The primaries, with a replica of each where there are any; `url` names the first, `whole_url` every primary."""

    def __init__(self, nodes: list[ClusterNode], replicas: list[ClusterNode]) -> None:
        self.nodes = nodes
        self.replicas = replicas
        self.url = f"redis://{LOOPBACK}:{nodes[0].port}/0"
        self.whole_url = f"redis://{','.join(f'{LOOPBACK}:{node.port}' for node in nodes)}/0"

    def settled(self) -> None:
        """Wait until every node serves the whole cluster."""

        ports = [node.port for node in (*self.nodes, *self.replicas)]
        _eventually(lambda: is_whole(ports), claim="the cluster is whole")

    def replicated(self, number: int) -> None:
        """Wait until a primary's replica has all that the primary has."""
        primary, replica = self.nodes[number].client(), self.replicas[number].client()

        def level() -> bool:
            wanted, found = primary.info("replication"), replica.info("replication")
            up = found.get("master_link_status") == "up"
            return bool(up and found["slave_repl_offset"] == wanted["master_repl_offset"])

        _eventually(level, claim="the replica has everything")

    def owner(self, slot: int) -> ClusterNode:
        """Return the node that a slot belongs to."""
        (port,) = (port for first, last, port in _owners(self.nodes[0].port) if first <= slot <= last)
        return next(node for node in self.nodes if node.port == port)

    def give(self, slot: int, owner: ClusterNode) -> None:
        """Make a node the owner of a slot, in the eyes of all."""
        identity = owner.client().cluster("myid").decode()
        # The owner last: whoever holds the slot claims it with every ping until it has given it up.
        nodes = sorted(self.nodes, key=lambda node: node is owner)

        def given() -> bool:
            for node in nodes:
                node.client().cluster("setslot", slot, "node", identity)
            return _agreed([node.port for node in nodes])

        _eventually(given, claim=f"all nodes know the owner of slot {slot}")

    def flush(self) -> None:
        """Empty all nodes."""
        for node in self.nodes:
            node.client().flushall()


@contextmanager
def running_cluster(folder: Path, count: int = 3, *, replicated: bool = False) -> Iterator[RedisNodes]:
    """Start a cluster with the slots shared out in order, each primary with a replica where it is `replicated`.

    Everything ends with the context.
    """
    server = importlib.import_module("tidemill.stack.wheels").redis_server()
    nodes = [ClusterNode(server, folder / str(number), free_port(beside=BUS)) for number in range(count)]
    replicas = [
        ClusterNode(server, folder / f"replica-{number}", free_port(beside=BUS)) for number in range(count * replicated)
    ]
    try:
        for node in (*nodes, *replicas):
            node.start()
        join([node.port for node in nodes])
        for replica in replicas:
            nodes[0].client().execute_command("CLUSTER", "MEET", LOOPBACK, replica.port)
        cluster = RedisNodes(nodes, replicas)
        cluster.settled()
        for node, replica in zip(nodes, replicas, strict=False):
            replica.client().execute_command("CLUSTER", "REPLICATE", node.client().cluster("myid").decode())
        for number in range(len(replicas)):
            cluster.replicated(number)
        yield cluster
    finally:
        for node in (*nodes, *replicas):
            node.kill()


def node_options(port: int, folder: Path) -> dict[str, Any]:
    """Return what makes a Redis a node of a cluster."""
    return {
        "port": port,
        "bind": LOOPBACK,
        "dir": folder,
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        "cluster-node-timeout": 2_000,
        # A test takes a node away and looks at the others.
        "cluster-require-full-coverage": "no",
        # A replica that has nothing yet may take over too: a test looks at what is lost so.
        "cluster-replica-validity-factor": 0,
        "repl-diskless-sync": "yes",
        "repl-diskless-sync-delay": 0,
        "maxmemory-policy": "noeviction",
    }


def join(ports: Sequence[int]) -> None:
    """Make a cluster of fresh nodes, all of them primaries, with the slots shared out in order."""
    for number, port in enumerate(ports):
        client = _client(port)
        first, last = number * SLOTS // len(ports), (number + 1) * SLOTS // len(ports)
        client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for port in ports[1:]:
        _client(ports[0]).execute_command("CLUSTER", "MEET", LOOPBACK, port)


def is_whole(ports: Sequence[int]) -> bool:
    """Say whether every node serves the whole cluster."""
    infos = [_client(port).cluster("info") for port in ports]
    return _agreed(ports) and all(
        (info["cluster_state"], info["cluster_slots_ok"]) == ("ok", str(SLOTS))
        and info["cluster_known_nodes"] == str(len(ports))
        for info in infos
    )


def _agreed(ports: Sequence[int]) -> bool:
    """Say whether all nodes give each slot to the same primary."""
    return len({frozenset(_owners(port)) for port in ports}) == 1


def _owners(port: int) -> list[tuple[int, int, int]]:
    """Return what a node says of all slots: the first and the last of each range, and its primary's port."""
    return [(first, last, primary[1]) for first, last, primary, *_ in _client(port).cluster("slots")]


def _client(port: int) -> Any:
    return importlib.import_module("redis").Redis(host=LOOPBACK, port=port, socket_timeout=30)


def _eventually(predicate: Callable[[], Any], claim: str) -> None:
    """Wait for nodes that may not answer yet."""
    eventually(predicate, claim=claim, tolerate=(AssertionError, importlib.import_module("redis").RedisError))
