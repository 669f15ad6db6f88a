"""What one run does, drawn from its seed alone: streams, views, waves of events, and faults between them.

Nothing here looks at a clock or a server, so that a seed names the same schedule everywhere. What the machine makes of
it (which batch a kill meets) differs from run to run; what must hold in the end does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from workload import Shape, random_shape

# How often each fault is drawn, out of the sum. Those that wait for Kafka to come back cost seconds.
FAULTS = {
    "kill": 30,
    "rebalance": 12,
    "zombie": 20,
    "redis": 25,
    # Of a cluster, and drawn where the other one would be; a run has the one or the other.
    "node": 0,
    "view": 8,
    "redrive": 8,
    # Of the offline role, where a run has one.
    "archive": 0,
    "kafka": 4,
    "recreate": 6,
    "grow": 3,
}
# Where the offline role runs.
ARCHIVER = "offline"
FEW_RECORDS, MANY_RECORDS = 10, 60


@dataclass(frozen=True)
class Act:
    """One step: what, on which worker's place or stream, how many records, how long, what share."""

    what: str
    place: str = ""
    count: int = 0
    delay_ms: int = 0
    flag: bool = False

    def __str__(self) -> str:
        parts = [self.what, self.place, f"{self.count}" * bool(self.count), f"{self.delay_ms} ms" * bool(self.delay_ms)]
        return " ".join(part for part in [*parts, "!" * self.flag] if part)


@dataclass(frozen=True)
class Schedule:
    """A whole run.

    `named`: workers have names of their own in the group, so that a killed one is back at once; `cluster`: the rings
    lie in a Redis Cluster; `archived`: the offline role runs too.
    """

    seed: int
    shape: Shape
    acts: Sequence[Act]
    named: bool
    cluster: bool
    archived: bool
    batch_records: int
    hop_delay_ms: int
    # Views that are registered from the beginning; the others come by a fault.
    first_views: int

    @property
    def faults(self) -> list[str]:
        """Return the faults by name, for the summary."""
        return [act.place for act in self.acts if act.what == "fault"]

    def __str__(self) -> str:
        streams = ", ".join(f"{one.name} of {one.partitions}" for one in self.shape.streams)
        names = "named" if self.named else "nameless"
        store = "a cluster" if self.cluster else "one Redis"
        how = f"batches of {self.batch_records}, {names} workers, hops of {self.hop_delay_ms} ms, {store}"
        return f"seed {self.seed}: {streams}; {len(self.shape.views)} views, {self.first_views} at first; {how}"


def schedule(seed: int, only: str = "") -> Schedule:
    """Return the run that a seed names; `only`: its faults are all of this kind."""
    chance = Random(seed)
    shape = random_shape(chance, seed)
    named = chance.random() < 0.7
    cluster = only == "node" or (not only and chance.random() < 0.15)
    archived = only == "archive" or (not only and chance.random() < 0.15)
    later = chance.random() < 0.3 and len(shape.views) > 1
    draw = _Drawing(chance, named)
    acts: list[Act] = [Act("start", "a")]
    if chance.random() < 0.4:
        acts.append(Act("start", "b"))
        draw.places.append("b")
    weights = FAULTS | ({"archive": 40, "redrive": 20, "recreate": 20} if archived else {})
    if archived:
        acts.append(Act("start", ARCHIVER))
    for _ in range(chance.randint(1, 4)):
        acts.append(draw.records())
        fault = only or chance.choices(list(weights), list(weights.values()))[0]
        if fault == "redis" and cluster:
            fault = "node"
        acts.append(Act("fault", fault))
        acts.extend(getattr(draw, fault)())
    acts.append(draw.records())
    return Schedule(
        seed,
        shape,
        acts,
        named,
        cluster,
        archived,
        batch_records=chance.choice([1, 3, 7, 20, 2_000]),
        hop_delay_ms=chance.choice([0, 0, 5, 20]),
        first_views=len(shape.views) - int(later),
    )


class _Drawing:
    """Draws the acts of each fault; `places` are the workers that live."""

    def __init__(self, chance: Random, named: bool) -> None:
        self._chance = chance
        self._named = named
        self.places = ["a"]
        self._fresh = iter("cdefghijklmnopqrstuvwxyz")

    def records(self) -> Act:
        """Send records; `flag`: do not wait for the acknowledgement before the next act."""
        count = self._chance.randint(FEW_RECORDS, MANY_RECORDS)
        return Act("send", count=count, delay_ms=self._moment(), flag=self._chance.random() < 0.3)

    def kill(self) -> Iterator[Act]:
        """A worker dies at once; it comes back at once, or only after more events."""
        place = self._chance.choice(self.places)
        yield Act("kill", place, delay_ms=self._moment())
        if self._chance.random() < 0.5:
            yield self.records()
        yield Act("start", place)

    def rebalance(self) -> Iterator[Act]:
        """A second worker joins, or one of two leaves in order."""
        if len(self.places) == 1:
            fresh = next(self._fresh)
            self.places.append(fresh)
            yield Act("start", fresh, delay_ms=self._moment())
        else:
            yield Act("stop", self.places.pop(self._chance.randrange(2)), delay_ms=self._moment())

    def zombie(self) -> Iterator[Act]:
        """A worker freezes, another takes its partitions and goes on, and the frozen one wakes up."""
        place = self._chance.choice(self.places)
        yield Act("freeze", place, delay_ms=self._moment())
        if self._named:
            yield Act("replace", place)
        elif len(self.places) == 1:
            fresh = next(self._fresh)
            self.places.append(fresh)
            yield Act("start", fresh)
        yield self.records()
        # By then the other one has gone on, or is just about to.
        yield Act("await", delay_ms=self._moment()) if self._chance.random() < 0.7 else Act("wait", delay_ms=900)
        yield Act("wake", place, delay_ms=self._moment())

    def redis(self) -> Iterator[Act]:
        """Redis dies and comes back without the last moments of its log: up to a second, seldom everything."""
        everything = self._chance.random() < 0.1
        lost_ms = self._chance.choice([0, 20, 100, 400, 1_000])
        yield Act("redis-dies", count=10**6 if everything else lost_ms)
        if self._chance.random() < 0.4:
            yield self.records()
        yield Act("redis-lives", delay_ms=self._moment())

    def node(self) -> Iterator[Act]:
        """A node of the cluster dies, a worker perhaps too, and comes back without the last moments of its log."""
        number = f"{self._chance.randrange(3)}"
        lost_ms = self._chance.choice([0, 20, 100, 400, 1_000, 10**6])
        yield Act("redis-dies", number, count=lost_ms, delay_ms=self._moment())
        if self._chance.random() < 0.3:
            yield from self.kill()
        if self._chance.random() < 0.4:
            yield self.records()
        yield Act("redis-lives", delay_ms=self._moment())

    def kafka(self) -> Iterator[Act]:
        """Kafka dies while records are under way, and comes back."""
        yield Act("send", count=self._chance.randint(FEW_RECORDS, MANY_RECORDS), flag=True)
        yield Act("kafka-dies", delay_ms=self._moment())
        if self._chance.random() < 0.3:
            place = self._chance.choice(self.places)
            yield Act("kill", place)
            yield Act("start", place)
        yield Act("kafka-lives")

    def recreate(self) -> Iterator[Act]:
        """A topic is deleted and made anew, empty; its features are then those of the new log."""
        if self._chance.random() < 0.5:
            place = self._chance.choice(self.places)
            yield Act("kill", place)
            yield Act("recreate")
            yield Act("start", place)
        else:
            yield Act("recreate", delay_ms=self._moment())

    def grow(self) -> Iterator[Act]:
        """A topic gets more partitions than its stream declares, and records come to them."""
        yield Act("grow", delay_ms=self._moment())
        yield self.records()

    def redrive(self) -> Iterator[Act]:
        """Streams allow more than before, and what they refused is sent again, perhaps by two people at once.

        `flag`: they allow later events too, which makes their views anew.
        """
        if self._chance.random() < 0.7:
            yield Act("await")
        yield Act("mend", flag=self._chance.random() < 0.5, delay_ms=self._moment())
        if self._chance.random() < 0.3:
            yield self.records()
        yield Act("redrive", count=self._chance.randint(1, 2), delay_ms=self._moment())
        if self._chance.random() < 0.5:
            yield from self.kill()
        yield Act("redriven")

    def archive(self) -> Iterator[Act]:
        """The offline role dies between an append and what it says of it, or wakes up beside its successor."""
        if self._chance.random() < 0.7:
            yield Act("kill", ARCHIVER, delay_ms=self._moment())
            if self._chance.random() < 0.5:
                yield self.records()
            yield Act("start", ARCHIVER, delay_ms=self._moment())
        else:
            if self._chance.random() < 0.7:
                yield Act("await-rows")
            yield self.records()
            yield Act("freeze", ARCHIVER, delay_ms=self._moment())
            yield Act("replace", ARCHIVER)
            yield self.records()
            yield Act("await-rows", delay_ms=self._moment())
            yield Act("wake", ARCHIVER, delay_ms=self._moment())

    def view(self) -> Iterator[Act]:
        """A view comes over the history that there is."""
        yield Act("register", delay_ms=self._moment())

    def _moment(self) -> int:
        return self._chance.choice([0, 0, 5, 20, 50, 100, 200])
