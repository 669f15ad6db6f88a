"""The gates of all registered streams, folded from registry.pipelines.v1; pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.cloudevents import watermark
from tidemill_contracts.reasons import Reason

from tidemill_ingestion.admission import Gate, Headers
from tidemill_ingestion.brake import Brake, Limit, Paused
from tidemill_ingestion.quality import DEFAULT_MAX_FIELDS, Profile
from tidemill_ingestion.recent import Recent
from tidemill_ingestion.timestamps import FIRST_YEAR, parse, to_us
from tidemill_ingestion.verdicts import Refusal

_FIRST_US = to_us(parse(f"{FIRST_YEAR}-01-01T00:00:00Z"))


class Gates:
    """One gate per stream; a redefined stream gets a new one at once."""

    def __init__(
        self,
        remembered: int,
        limit_of: Callable[[str], Limit] = lambda _stream: Limit(),
        profiled_fields: int = DEFAULT_MAX_FIELDS,
    ) -> None:
        """Remember at most `remembered` identities per stream; `limit_of` says how bad a stream may be."""
        self._profiled_fields = profiled_fields
        self._remembered = remembered
        self._limit_of = limit_of
        self._catalogue = Catalogue()
        self._gates: dict[str, Gate] = {}
        self._topic_ids: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._gates)

    def fold(self, value: bytes | None) -> None:
        """Take in one record of the topic. Raises `ValueError` where it is no DefinitionRecord."""
        record = self._catalogue.fold(value)
        if record is None:
            return
        if record.retired and record.kind == "stream":
            self._gates.pop(record.name, None)
        for stream in record.definition.streams:
            known = self._gates.get(stream.name)
            if known is None:
                brake, profile = Brake(self._limit_of(stream.name)), Profile(stream, self._profiled_fields)
                recent = Recent(self._remembered)
                self._gates[stream.name] = Gate(stream, recent, brake=brake, profile=profile)
            elif known.stream != stream:
                gate = Gate(stream, known.recent, brake=known.brake, profile=known.profile)
                gate.changes = known.changes
                self._gates[stream.name] = gate

    def follow(self, topic_ids: Mapping[str, bytes]) -> list[str]:
        """Take note of the ids that Kafka gave topics; return the streams whose topic is another one than before.

        What those accepted is gone with the former topic, and is no repeat when it is sent again.
        """
        anew = []
        for gate in self:
            topic_id = topic_ids.get(gate.topic)
            if topic_id is None:
                continue
            if self._topic_ids.setdefault(gate.topic, topic_id) != topic_id:
                self._topic_ids[gate.topic] = topic_id
                gate.recent.forget()
                anew.append(gate.stream.name)
        return anew

    def __iter__(self) -> Iterator[Gate]:
        return iter(list(self._gates.values()))

    def find(self, stream: str) -> Gate | Refusal:
        """Return the gate of a stream, or why there is none."""
        gate = self._gates.get(stream)
        if gate is not None:
            return gate
        message = f"no stream {stream[:100]!r} is registered: apply a definition that declares it"
        return Refusal(Reason.UNKNOWN_STREAM, "stream", message)

    def check_watermark(self, streams: Iterable[str], time_us: int, now_us: int) -> Refusal | None:
        """Return why a watermark is refused; None when it may be written."""
        for name in streams:
            gate = self.find(name)
            if isinstance(gate, Refusal):
                return gate
            if time_us > now_us + gate.stream.max_future_ms * 1000:
                message = f"the watermark lies too far ahead of the clock for stream {name!r}"
                return Refusal(Reason.TOO_FAR_IN_FUTURE, "watermark.time_us", message)
        if time_us < _FIRST_US:
            return Refusal(Reason.OUT_OF_RANGE, "watermark.time_us", f"the watermark lies before {FIRST_YEAR}")
        return None

    def paused(self, streams: Iterable[str], now_us: int) -> tuple[str, Paused] | None:
        """Return the first of these streams that is paused, and its pause."""
        for name in streams:
            gate = self._gates.get(name)
            pause = None if gate is None else gate.paused(now_us)
            if pause is not None:
                return name, pause
        return None

    def watermarks(self, streams: Iterable[str], time_us: int) -> Iterable[tuple[str, int, Headers]]:
        """Yield (topic, partition, headers) of the records that carry every partition's clock to `time_us`."""
        for name in sorted(set(streams)):
            gate = self._gates[name]
            headers = watermark(name, time_us)
            for partition in range(gate.stream.partitions):
                yield gate.topic, partition, headers
