"""What became of the predictions: outcomes read back from their topic, as columns."""

import hashlib
import heapq
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import ConsumerRecord
from numpy.typing import NDArray
from tidemill_contracts.kafka_logs import log_bounds
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as serving

STEP_RECORDS = 5_000
READ_TIMEOUT_MS = 10_000


async def read_topic(client: dict[str, Any], topic: str) -> AsyncIterator[ConsumerRecord]:
    """Yield every record that the (physical) topic holds at the time of the call, partition by partition in order."""
    consumer = AIOKafkaConsumer(topic, **client, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        starts, ends = await log_bounds(consumer)
        left = {place for place, end in ends.items() if end > starts[place]}
        while left:
            batches = await consumer.getmany(timeout_ms=READ_TIMEOUT_MS, max_records=STEP_RECORDS)
            for place, records in batches.items():
                for record in records:
                    if record.offset < ends[place]:
                        yield record
            for place in list(left):
                if await consumer.position(place) >= ends[place]:
                    left.discard(place)
    finally:
        await consumer.stop()


@dataclass(frozen=True)
class Scored:
    """Labelled predictions, one row each, ordered by (as_of, prediction id)."""

    as_of_us: NDArray[np.int64]
    label: NDArray[np.float64]
    # Probability of the version that answered, and of the fixed first model.
    adaptive: NDArray[np.float64]
    static: NDArray[np.float64]


@dataclass
class Latest:
    """Keeps, per prediction id, the outcome with the highest revision."""

    static_version: int

    def __post_init__(self) -> None:
        self._kept: dict[str, tuple[int, int, int, float, float, float]] = {}

    def add(self, value: bytes) -> None:
        """Take in one record of the outcomes topic."""
        outcome = monitoring.OutcomeRecord.FromString(value)
        known = self._kept.get(outcome.prediction_id)
        if known is not None and known[0] >= outcome.revision:
            return
        prediction = outcome.prediction
        static = next(
            (score.probability for score in prediction.scores if score.model_version == self.static_version),
            float("nan"),
        )
        self._kept[outcome.prediction_id] = (
            outcome.revision,
            outcome.state,
            prediction.as_of_us,
            outcome.label,
            prediction.probability,
            static,
        )

    def scored(self) -> Scored:
        """Return the labelled ones as columns."""
        rows = sorted(
            (as_of, name, label, adaptive, static)
            for name, (_, state, as_of, label, adaptive, static) in self._kept.items()
            if state != monitoring.OUTCOME_STATE_NEVER
        )
        return Scored(
            as_of_us=np.array([row[0] for row in rows], np.int64),
            label=np.array([row[2] for row in rows], np.float64),
            adaptive=np.array([row[3] for row in rows], np.float64),
            static=np.array([row[4] for row in rows], np.float64),
        )


@dataclass
class Logged:
    """How many predictions are logged, under how many ids, and a sample of them that depends on the ids alone."""

    records: int
    distinct: int
    sample: list[serving.PredictionRecord]


async def logged_predictions(client: dict[str, Any], prefix: str, sample: int) -> Logged:
    """Read the predictions topic to its end."""
    seen: set[str] = set()
    kept: list[tuple[bytes, str]] = []
    values: dict[str, bytes] = {}
    records = 0
    async for record in read_topic(client, f"{prefix}serving.predictions.v1"):
        records += 1
        name = serving.PredictionRecord.FromString(record.value).prediction_id
        if name in seen:
            continue
        # The sample: the ids whose digests are smallest; the heap keeps the largest of them on top.
        seen.add(name)
        inverted = bytes(255 - byte for byte in hashlib.sha256(name.encode()).digest()[:8])
        values[name] = record.value
        heapq.heappush(kept, (inverted, name))
        if len(kept) > sample:
            del values[heapq.heappop(kept)[1]]
    chosen = [serving.PredictionRecord.FromString(values[name]) for name in sorted(values)]
    return Logged(records, len(seen), chosen)


def named_features(prediction: serving.PredictionRecord, columns: Sequence[registry.FeatureColumn]) -> dict[str, Any]:
    """Return the features that a prediction used, by name; None for null."""
    numbers, categories = iter(prediction.features.numbers), iter(prediction.features.categories)
    features: dict[str, Any] = {}
    for column in columns:
        if column.category:
            features[column.name] = next(categories) or None
        else:
            number = next(numbers)
            features[column.name] = None if math.isnan(number) else number
    return features


async def latest_outcomes(client: dict[str, Any], prefix: str, static_version: int) -> Latest:
    """Read the outcomes topic to its end."""
    latest = Latest(static_version)
    async for record in read_topic(client, f"{prefix}monitoring.outcomes.v1"):
        latest.add(record.value)
    return latest
