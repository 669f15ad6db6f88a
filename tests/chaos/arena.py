"""The servers that runs share, and one run on them after another."""

import shutil
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from kafka_log import Log
from life import Life, Machines
from machines import Kafka
from redis_servers import Redis, RedisCluster
from schedule import schedule
from tidemill.stack import Stack
from tidemill.stack.spec import External
from tidemill_testkit.nursery import Nursery


class Arena:
    """Lives runs; the folder of one that ended wrong is kept."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._kafka = Kafka(home / "kafka")
        self._nursery = Nursery("tidemill_feature", "tidemill_feature.adapters.archive")
        self._cluster: RedisCluster | None = None
        # PostgreSQL alone; with the other two, this is the stack's own way to run without them.
        self._postgres = Stack("chaos", home / "postgres", external=External(self._kafka.bootstrap, "redis://unused"))
        self.faults: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self._kafka.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nursery.close()
        if self._cluster is not None:
            await self._cluster.close()
        self._kafka.kill()
        self._postgres.remove()

    async def live(self, seed: int, only: str = "") -> Life:
        """Live one run; raises where it ends wrong. Its folder is kept then."""
        folder = self._home / f"r{seed}-{time.monotonic_ns() % 1_000_000:06}"
        folder.mkdir()
        plan = schedule(seed, only)
        redis = await self._clean_cluster() if plan.cluster else Redis(folder)
        await redis.start()
        postgres = await self._database(folder.name) if plan.archived else ""
        life = Life(plan, Machines(self._kafka, redis, self._nursery, postgres), folder)
        try:
            await life.live()
            self.faults.update(plan.faults)
        finally:
            if redis is not self._cluster:
                await redis.close()
        async with Log(life.settings) as log:
            await log.delete_all()
        shutil.rmtree(folder)
        return life

    async def _database(self, name: str) -> str:
        """Return the DSN of a fresh database; PostgreSQL is started when it is first needed."""
        dsn = self._postgres.start(only="servers").postgres_dsn
        connection: Any = await asyncpg.connect(dsn)
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()
        return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))

    async def _clean_cluster(self) -> RedisCluster:
        """Return the cluster, begun when it is first needed; nodes take a while to find each other."""
        if self._cluster is None:
            self._cluster = RedisCluster(self._home / "cluster")
        await self._cluster.clear()
        return self._cluster
