"""The servers that runs share, and one run on them after another."""

import shutil
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from kafka_log import Log
from life import Life
from machines import Kafka, Nursery, Redis
from schedule import schedule


class Arena:
    """Lives runs; the folder of one that ended wrong is kept."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._kafka = Kafka(home / "kafka")
        self._nursery = Nursery()
        self.faults: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self._nursery.start()
        await self._kafka.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._nursery.close()
        self._kafka.kill()

    async def live(self, seed: int, only: str = "") -> Life:
        """Live one run; raises where it ends wrong. Its folder is kept then."""
        folder = self._home / f"r{seed}-{time.monotonic_ns() % 1_000_000:06}"
        folder.mkdir()
        redis = Redis(folder)
        await redis.start()
        life = Life(schedule(seed, only), self._kafka, redis, self._nursery, folder)
        try:
            await life.live()
            self.faults.update(life.schedule.faults)
        finally:
            redis.kill()
            await redis.client.aclose()
        async with Log(life.settings) as log:
            await log.delete_all()
        shutil.rmtree(folder)
        return life
