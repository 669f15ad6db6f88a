"""The bridge role: producers' own topics, validated, into the topics of their streams; one consumer group per topic.

getmany → step (the gate judges) → dead letters → apply (write) → commit
                                      ▲ while the stream is paused, nothing is written and nothing is read on
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from uuid import uuid4

import structlog
from tidemill_contracts.dead_letters import BRIDGE_GROUP
from tidemill_contracts.topics import dead_letter_topic, events_topic
from tidemill_runtime.batches import Assignment, Batch, Pipeline, Record, Refused, Restored, Step, StreamOptions
from tidemill_runtime.dead_letters import DeadLetters, Judged
from tidemill_runtime.errors import Poison, Retryable, StateLost, TidemillError
from tidemill_runtime.health import Health
from tidemill_runtime.outgoing import Placed
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner

from tidemill_ingestion import metrics
from tidemill_ingestion.adapters.publisher import StreamPausedError, paused_message
from tidemill_ingestion.admission import Admitted, Gate, Repeat
from tidemill_ingestion.bridging import event_of, poison_of
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.settings import Settings
from tidemill_ingestion.verdicts import Refusal

# Kafka away or a stream paused: it ends by itself or by an operator, however long it takes.
_FOR_EVER = math.inf
_LOOK_S = 0.5
_FETCH_WAIT_MS = 50

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Copies:
    """What a batch writes; what Kafka has acknowledged is not written again where the rest is."""

    admitted: list[tuple[Record, Admitted]] = field(default_factory=list)
    repeats: int = 0
    # What Kafka itself refuses, such as a record that is too large for the broker.
    never: list[Refused] = field(default_factory=list)


class BridgeLetters(DeadLetters):
    """Dead letters of a bridged topic: beside those of its stream, with the topic's own name as origin."""

    def __init__(self, bridge: "Bridge", raw: KafkaSettings) -> None:
        super().__init__(bridge.producer, raw, bridge.group, topic=dead_letter_topic(events_topic(bridge.stream)))
        self._bridge = bridge

    async def send(self, refused: Sequence[Refused], count: int, judged: Judged | None = None) -> None:
        """Write the refused records of a batch of `count`; the stream's pauses stand for the runner's limit.

        Raises `StreamPausedError`, and what `Bridge.gate` raises, with nothing written.
        """
        gate, now_us = self._bridge.gate(), self._bridge.clock()
        pause = gate.paused(now_us)
        if pause is not None:
            raise StreamPausedError(paused_message(gate.stream.name, pause), retry_after_s=_LOOK_S)
        await self.write(refused)
        refusals = [Refusal(one.poison.reason, one.poison.field, str(one.poison)) for one in refused]
        gate.judged(count - len(refused), refusals, now_us)

    async def write(self, refused: Sequence[Refused]) -> None:
        """Write refused records as dead letters, and count them. Raises `Retryable` from Kafka."""
        await super().write(refused)
        self._bridge.count("refused", len(refused))


class BridgePipeline(Pipeline[None, Copies]):
    """Copies one topic's records; there is no state beyond the stream's gate."""

    def __init__(self, bridge: "Bridge", letters: BridgeLetters) -> None:
        self._bridge = bridge
        self._letters = letters

    async def restore(self, assignment: Assignment) -> Restored[None]:
        """Begin where the group has committed; what was copied already is told by its identity."""
        return Restored(None)

    def step(self, state: None, batch: Batch, now_us: int) -> Step[None, Copies]:
        """Judge the records with the gate that the doors ask too."""
        copies, refused = Copies(), list[Refused]()
        gate = self._bridge.next_gate()
        if gate is None:
            # Neither the letters nor `apply` let the batch pass.
            return Step(None, copies, refused)
        records = list(batch)
        judged = gate.judge((event_of(record) for record in records), "", now_us, lambda: str(uuid4()))
        for record, verdict in zip(records, judged, strict=True):
            if isinstance(verdict, Admitted):
                copies.admitted.append((record, verdict))
            elif isinstance(verdict, Repeat):
                copies.repeats += 1
            else:
                refused.append(Refused(record, poison_of(verdict)))
        return Step(None, copies, refused)

    async def apply(self, effects: Copies) -> None:
        """Write what is not written yet. Raises `Retryable` from Kafka, and what `Bridge.gate` raises."""
        gate = self._bridge.gate()
        pending = effects.admitted
        outcomes = await self._bridge.producer.send_each([admitted.outgoing() for _, admitted in pending])
        now_us = self._bridge.clock()
        effects.admitted = []
        failure: TidemillError | None = None
        for (record, admitted), outcome in zip(pending, outcomes, strict=True):
            if isinstance(outcome, Placed):
                gate.accepted(admitted, outcome.partition, now_us)
            elif isinstance(outcome, Poison):
                effects.never.append(Refused(record, outcome))
            else:
                effects.admitted.append((record, admitted))
                failure = failure or outcome
        self._bridge.count("accepted", sum(isinstance(outcome, Placed) for outcome in outcomes))
        self._bridge.count("duplicate", effects.repeats)
        effects.repeats = 0
        await self._letters.write(effects.never)
        effects.never.clear()
        if failure is not None:
            raise failure


class Bridge:
    """One topic on its way into one stream; a `Component` for `running`."""

    def __init__(
        self, topic: str, stream: str, settings: Settings, gates: Gates, producer: Producer, clock: Callable[[], int]
    ) -> None:
        """Read `topic`, a name on the broker."""
        self.topic = topic
        self.stream = stream
        self.settings = settings
        self.producer = producer
        self.clock = clock
        self.group = BRIDGE_GROUP + topic
        self._gates = gates
        # The topic is its producer's and has no prefix; the group is ours and has one.
        raw = settings.kafka.model_copy(update={"topic_prefix": ""})
        letters = BridgeLetters(self, raw)
        options = StreamOptions(
            settings.kafka.physical(self.group),
            letters_of=self.group,
            max_records=settings.bridge_batch_records,
            fetch_wait_ms=_FETCH_WAIT_MS,
            retry_limit_s=_FOR_EVER,
            stall_s=settings.stall_s,
            hop_delay_ms=settings.test_hop_delay_ms,
            seed=settings.test_seed,
        )
        self._runner = StreamRunner(BridgePipeline(self, letters), raw, options, topics=[topic], dead_letters=letters)
        self._judge: Gate | None = None
        self._begin = asyncio.Event()
        self._stopped = False
        self.reached = self._runner.reached

    async def __aenter__(self) -> Self:
        await self._runner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """Copy until `stop`, from when the stream is registered; while it is retired, what was read waits."""
        if not self._begin.is_set():
            log.warning("bridge_waits", topic=self.topic, stream=self.stream, detail="the stream is not registered yet")
        await self._begin.wait()
        if not self._stopped:
            await self._runner.run()

    def stop(self) -> None:
        """Read nothing more."""
        self._stopped = True
        self._begin.set()
        self._runner.stop()

    def gate(self) -> Gate:
        """Return the gate that judges the batch in work.

        Raises `Retryable` while the stream is retired: the batch waits. Raises `StateLost` once the stream is defined
        anew: the batch is read again, and judged by the new gate.
        """
        gate = self._gates.find(self.stream)
        if isinstance(gate, Refusal):
            raise Retryable(gate.message)
        if gate is not self._judge:
            raise StateLost(f"stream {self.stream!r} was defined anew with a batch in work")
        return gate

    def next_gate(self) -> Gate | None:
        """Return the gate that is to judge the next batch; None while the stream is retired."""
        gate = self._gates.find(self.stream)
        self._judge = None if isinstance(gate, Refusal) else gate
        return self._judge

    def follow(self) -> None:
        """Begin to read once the stream is registered."""
        if isinstance(self._gates.find(self.stream), Gate):
            self._begin.set()

    def fault(self) -> str | None:
        """Return what is wrong, for readiness. A pause is not: the doors of this replica go on.

        Nor is a stream that nobody has registered yet, where there are doors: it comes once they are there.
        """
        gate = self._gates.find(self.stream)
        if isinstance(gate, Refusal):
            if "door" in self.settings.roles and not self._begin.is_set():
                return None
            return f"stream {self.stream!r} is not registered {'any more' if self._begin.is_set() else 'yet'}"
        return None if gate.brake.pause is not None else self._runner.fault()

    def count(self, outcome: str, records: int) -> None:
        """Count what became of records."""
        metrics.bridged.labels(metrics.stream_label(self.stream), outcome).inc(records)


def open_bridges(
    settings: Settings, gates: Gates, producer: Producer, clock: Callable[[], int], health: Health
) -> list[Bridge]:
    """Return the bridges of the role; none where it is off."""
    if "bridge" not in settings.roles:
        return []
    bridges = [
        Bridge(topic, stream, settings, gates, producer, clock) for topic, stream in sorted(settings.bridges.items())
    ]
    for bridge in bridges:
        health.require_ready(f"bridge:{bridge.topic}", bridge.fault)
    return bridges
