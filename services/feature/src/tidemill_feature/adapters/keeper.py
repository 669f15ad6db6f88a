"""Keeps an instance's definitions as the book says, and ends what is no longer folded."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import time_ns

import structlog
from tidemill_contracts.topics import events_topic
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.errors import Retryable
from tidemill_runtime.lifecycle import Component

from tidemill_feature import metrics
from tidemill_feature.adapters.builds import stream_points
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.registered import Definitions
from tidemill_feature.retiring import Changes, retire, unsettled
from tidemill_feature.uses import Uses

_EVERY_S = 1.0
# Readers that began with what is dropped have ended by then.
_EXPIRE_AFTER_S = 60

log = structlog.get_logger(__name__)


@dataclass
class Keeper(Component):
    """A `Component`; `retires` says whether this instance may end old versions now (any number of them may)."""

    definitions: Definitions
    book: ViewBook
    store: RedisStore
    uses: Uses
    project: str
    grace_us: int
    retires: Callable[[], bool]
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Look no further."""
        self._stopping.set()

    async def run(self) -> None:
        """Look until `stop`."""
        while not self._stopping.is_set():
            try:
                await self._look()
            except Retryable as error:
                log.info("book_not_read", error=str(error))
            await sleep_unless(self._stopping, _EVERY_S)

    async def _look(self) -> None:
        book = await self.book.read()
        self.definitions.take(book)
        if not self.retires():
            return
        now_us = time_ns() // 1000
        # Only where something may end: the checkpoints of all partitions are read for it.
        found = await stream_points(self.store, self.definitions, unsettled(self.definitions))
        points = {events_topic(stream): held for stream, held in found.items()}
        changes = retire(self.definitions, points, self.uses.hashes, now_us, self.grace_us, self.project)
        if changes:
            log.info("views_end", set=sorted(changes.set), retired=sorted(changes.first), dropped=changes.delete)
            await self.book.write(changes)
            self.definitions.take(await self.book.read())
        for prefix, due_us in book.expiring.items():
            if now_us >= due_us:
                count = await self.book.expire(prefix, _EXPIRE_AFTER_S)
                metrics.shards_expired.inc(count)
                await self.book.write(Changes(delete=[f"x:{prefix}"]))
