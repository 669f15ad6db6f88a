"""What is logged of a prediction, and the sequence by which a lost log line shows."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from tidemill_contracts.cloudevents import Attributes, to_headers
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_features.reader import Place
from tidemill_runtime.outgoing import Outgoing

TOPIC = "serving.predictions.v1"
# CloudEvents attributes of every record.
TYPE = "tidemill.prediction.v1"
SOURCE = "tidemill/serving"


class Origin(NamedTuple):
    """What all predictions of one read share, as it lies in their records: messages behind each other are one."""

    shared: bytes
    headers: Sequence[tuple[str, bytes]]


def origin_of(
    pipeline: str, definition_hash: str, revision: int, as_of_us: int, positions: Mapping[Place, int], now_us: int
) -> Origin:
    """Return what is logged of a read: definition, deployment, and how far the rings had come."""
    shared = records.PredictionRecord(
        pipeline=pipeline,
        as_of_us=as_of_us,
        positions=[
            progress.TopicPartitionOffset(topic=place.topic, partition=place.partition, next_offset=offset)
            for place, offset in positions.items()
        ],
        deployment_revision=revision,
        predicted_at_us=now_us,
        definition_hash=definition_hash,
    )
    return Origin(shared.SerializeToString(), _shared_headers(pipeline, as_of_us))


class Journal:
    """Finishes the log records of one process and numbers those that are logged ASYNC, dropped ones included.

    A reader of the topic that misses a number of a process knows that an ASYNC log line was lost. A DURABLE record
    needs no number and carries 0: where Kafka did not take it, its caller was told.
    """

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id
        self._sequence = count(1)

    def entry(self, prediction: records.PredictionRecord, origin: Origin, *, durable: bool) -> Outgoing:
        """Return as it is logged a prediction that lacks what it shares with others."""
        prediction.process_id = self.process_id
        if not durable:
            prediction.sequence = next(self._sequence)
        headers = [("ce_id", prediction.prediction_id.encode()), *origin.headers]
        return Outgoing(TOPIC, origin.shared + prediction.SerializeToString(), prediction.join_key.encode(), headers)


@lru_cache(64)
def _shared_headers(pipeline: str, as_of_us: int) -> tuple[tuple[str, bytes], ...]:
    """Return the CloudEvents headers that all predictions of a pipeline at one instant share."""
    attributes = Attributes(id="", source=SOURCE, type=TYPE, time_us=as_of_us, subject=pipeline)
    return tuple(to_headers(attributes, "application/protobuf"))
