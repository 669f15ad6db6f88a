"""What is logged of a prediction, and the sequence by which a lost log line shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.serving.v1 import records_pb2 as records

TOPIC = "serving.predictions.v1"
# CloudEvents attributes of every record.
TYPE = "tidemill.prediction.v1"
SOURCE = "tidemill/serving"


@dataclass(frozen=True, slots=True)
class Origin:
    """What all predictions of one read share: definition, deployment, and how far the rings had come."""

    pipeline: str
    definition_hash: str
    deployment_revision: int
    positions: Sequence[progress.TopicPartitionOffset]
    predicted_at_us: int


@dataclass(frozen=True, slots=True)
class Scored:
    """One request, scored by every version and answered by one."""

    prediction_id: str
    join_key: str
    as_of_us: int
    model_version: int
    probability: float
    scores: Sequence[records.Score]
    features: records.ServedFeatures
    request_json: bytes


class Journal:
    """Builds the log records of one process and numbers those that are logged ASYNC, dropped ones included.

    A reader of the topic that misses a number of a process knows that an ASYNC log line was lost. A DURABLE record
    needs no number and carries 0: where Kafka did not take it, its caller was told.
    """

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id
        self._sequence = count(1)

    def record(self, scored: Scored, origin: Origin, *, durable: bool) -> records.PredictionRecord:
        """Return the log record of a prediction."""
        return records.PredictionRecord(
            prediction_id=scored.prediction_id,
            pipeline=origin.pipeline,
            join_key=scored.join_key,
            as_of_us=scored.as_of_us,
            model_version=scored.model_version,
            probability=scored.probability,
            scores=scored.scores,
            features=scored.features,
            positions=origin.positions,
            request_json=scored.request_json,
            deployment_revision=origin.deployment_revision,
            process_id=self.process_id,
            sequence=0 if durable else next(self._sequence),
            predicted_at_us=origin.predicted_at_us,
            definition_hash=origin.definition_hash,
        )
