"""The book in Redis: which versions and builds of views a worker group folds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tidemill_features.plan import ViewPlan
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import Client

from tidemill_feature.adapters.redis_store import translated
from tidemill_feature.book import Book, Version, read_book
from tidemill_feature.building import Fault
from tidemill_feature.progress import Progress
from tidemill_feature.retiring import Changes, expiring, name_of

_SCAN_KEYS = 1_000


class ViewBook:
    """One hash per project and worker group."""

    def __init__(self, redis: Client, project: str, group: str) -> None:
        self._redis: Any = redis
        self._project = project
        self._key = f"tm1:views:{{{project}:{group}}}"
        self._progress = f"tm1:builds:{{{project}:{group}}}"

    async def read(self) -> Book:
        """Return the book."""
        with translated():
            return read_book(await self._redis.hgetall(self._key))

    async def add(self, versions: Mapping[str, Version]) -> None:
        """Take note of versions that are folded from now on; those that are known stay as they are."""
        await self.write(Changes(first={f"d:{name}": version.pack() for name, version in versions.items()}))

    async def write(self, changes: Changes) -> None:
        """Write fields in one transaction."""
        if not changes:
            return
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                for name, value in changes.first.items():
                    pipe.hsetnx(self._key, name, value)
                if changes.set:
                    pipe.hset(self._key, mapping=changes.set)
                if changes.delete:
                    pipe.hdel(self._key, *changes.delete)
                await pipe.execute()

    async def rebuild(self, plans: Iterable[ViewPlan]) -> None:
        """Want another build of some views."""
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                for plan in plans:
                    pipe.hincrby(self._key, f"b:{name_of(plan)}", 1)
                await pipe.execute()

    async def follow(self, stream: str, topic_id: bytes, plans: Sequence[ViewPlan], fault: Fault, now_us: int) -> bool:
        """Take note of which topic feeds a stream; where its log is another one than before, want all views built anew.

        What was built before is neither read nor folded any more. Of several workers that notice a topic made anew one
        acts. Returns whether anything was wanted anew.
        """
        field, new = f"t:{stream}", topic_id.hex().encode()
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(self._key)
                known = await pipe.hget(self._key, field)
                if known == new and fault is not Fault.LOST_END:
                    return False
                pipe.multi()
                pipe.hset(self._key, field, new)
                anew = fault is not Fault.NONE or known is not None
                for plan in plans if anew else ():
                    pipe.hset(self._key, f"b:{name_of(plan)}", plan.build + 1)
                    pipe.hset(self._key, f"f:{name_of(plan)}", plan.build + 1)
                    pipe.hset(self._key, mapping=expiring([plan.hash], range(plan.build + 1), now_us, self._project))
                await pipe.execute()
                return anew

    async def report(self, partition: Partition, progress: Progress) -> None:
        """Say how far a partition's views are that are being built."""
        with translated():
            await self._redis.hset(self._progress, f"{partition.topic}:{partition.number}", progress.pack())

    async def reported(self, partitions: Sequence[Partition]) -> None:
        """Take note that there is nothing more to be said of some partitions."""
        if partitions:
            with translated():
                await self._redis.hdel(self._progress, *(f"{place.topic}:{place.number}" for place in partitions))

    async def progress(self) -> dict[Partition, Progress]:
        """Return how far all workers of the group are with what they build."""
        with translated():
            raw = await self._redis.hgetall(self._progress)
        places = {tuple(name.decode().rsplit(":", 1)): value for name, value in raw.items()}
        return {Partition(topic, int(number)): Progress.unpack(value) for (topic, number), value in places.items()}

    async def expire(self, prefix: str, after_s: int) -> int:
        """Let all keys that begin so expire after a while; return how many there are."""
        count = 0
        with translated():
            batch: list[bytes] = []
            async for key in self._redis.scan_iter(match=f"{prefix}*", count=_SCAN_KEYS):
                batch.append(key)
                if len(batch) >= _SCAN_KEYS:
                    count += await self._expire(batch, after_s)
                    batch = []
            return count + await self._expire(batch, after_s)

    async def _expire(self, keys: Sequence[bytes], after_s: int) -> int:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.expire(key, after_s)
            await pipe.execute()
        return len(keys)
