"""The real Redis of a run, alone or as a cluster of three: any process may be killed and lose its last writes."""

import asyncio
import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from processes import begun, end
from redis.asyncio import Redis as Client
from redis.asyncio import RedisCluster as ClusterClient
from tidemill.stack import wheels
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.ports import LOOPBACK, free_port
from tidemill_testkit.redis_cluster import BUS, is_whole, join, node_options

SAMPLE_S = 0.02
# Of each node, and of the one Redis that is none: every write is in the file within a second, and nothing rewrites it.
_LOGGED = {"save": "", "appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-percentage": "0"}


class Node:
    """One process with an append-only file, of which a crash may lose the last moments."""

    def __init__(self, folder: Path, place: Path | int, options: Mapping[str, Any]) -> None:
        """Take where it listens: a socket's path, or a port."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._place = place
        self._file = folder / "appendonly.aof"
        words = [word for name, value in {**options, **_LOGGED}.items() for word in (f"--{name}", str(value))]
        self._command = [str(wheels.redis_server()), *words]
        self._process: subprocess.Popen[bytes] | None = None
        self._sizes: list[tuple[float, int]] = []
        self._sampling: asyncio.Task[None] | None = None
        # What a crash cannot take: an earlier run's writes, and that they were deleted.
        self._floor = 0

    async def start(self) -> None:
        """Start it, if it does not run; returns when it has read its file."""
        if self._process is None:
            self._process = begun(self._command, self._folder / "redis.log")
            await aeventually(self._answers, 20, claim="Redis answers")
            self._sampling = asyncio.create_task(self._sample())

    def kill(self) -> None:
        """Kill -9."""
        if self._sampling is not None:
            self._sampling.cancel()
        if self._process is not None:
            end(self._process)
            self._process = None

    def lose(self, milliseconds: int) -> None:
        """Cut what was written within the last moments off the file, as a machine that loses power does."""
        since = time.monotonic() - milliseconds / 1000
        size = self._file.stat().st_size
        kept = max((held for at, held in self._sizes if at <= since), default=self._floor) if milliseconds else size
        os.truncate(self._file, kept)
        self._sizes = [(at, held) for at, held in self._sizes if held <= kept]

    async def settle(self) -> None:
        """From now on lose nothing of what was written so far, once all of it is in the file."""
        self._sizes = []
        self._floor = await aeventually(self._steady, 20, claim="the file of Redis grows no more")

    async def _steady(self) -> int:
        before = self._file.stat().st_size
        await asyncio.sleep(SAMPLE_S)
        return before if self._file.stat().st_size == before else 0

    async def _sample(self) -> None:
        while True:
            with suppress(FileNotFoundError):
                self._sizes.append((time.monotonic(), self._file.stat().st_size))
            await asyncio.sleep(SAMPLE_S)

    async def _answers(self) -> bool:
        try:
            if isinstance(self._place, Path):
                reader, writer = await asyncio.open_unix_connection(str(self._place))
            else:
                reader, writer = await asyncio.open_connection(LOOPBACK, self._place)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        except OSError:
            return False
        finally:
            writer.close()


class Redis:
    """One Redis."""

    def __init__(self, folder: Path) -> None:
        # Short: the path of a Unix socket has at most 107 characters.
        socket = folder / "s"
        self.environment = {"REDIS__URL": f"unix://{socket}"}
        self.nodes = [Node(folder, socket, {"port": 0, "unixsocket": socket, "dir": folder})]
        self.client: Any = Client.from_url(f"unix://{socket}", protocol=2)

    async def start(self) -> None:
        """Start what does not run; returns when it answers for every key."""
        await asyncio.gather(*(node.start() for node in self.nodes))

    async def close(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.kill()
        await self.client.aclose()


class RedisCluster(Redis):
    """Three primaries, which one run after another has for itself."""

    def __init__(self, folder: Path) -> None:
        self._ports = [free_port(beside=BUS) for _ in range(3)]
        url = f"redis://{LOOPBACK}:{self._ports[0]}/0"
        self.environment = {"REDIS__URL": url, "REDIS__CLUSTER": "true"}
        places = [(folder / str(number), port) for number, port in enumerate(self._ports)]
        self.nodes = [Node(home, port, node_options(port, home)) for home, port in places]
        self.client = ClusterClient.from_url(url)
        self._joined = False

    async def start(self) -> None:
        await super().start()
        if not self._joined:
            await asyncio.to_thread(join, self._ports)
            self._joined = True
        await aeventually(self._whole, 20, claim="the cluster is whole")

    async def clear(self) -> None:
        """Forget what a run left."""
        await self.start()
        await self.client.flushall(target_nodes=ClusterClient.PRIMARIES)
        await asyncio.gather(*(node.settle() for node in self.nodes))

    async def _whole(self) -> bool:
        return await asyncio.to_thread(is_whole, self._ports)
