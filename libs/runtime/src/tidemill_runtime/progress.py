"""`WaitProgress`: a caller waits until what it sent has taken effect, and learns what that wrote."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc
from tidemill_contracts.progress.v1 import progress_pb2 as messages
from tidemill_contracts.progress.v1 import progress_pb2_grpc as services
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Offsets, Partition


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a stage is: end offsets of every topic the service has written, and its event-time clock (0: none)."""

    written: Offsets
    event_time_us: int = 0


# Returns once everything before `offsets`, everything up to `event_time_us` (0: no time asked), and what that caused is
# written; topics that the stage does not read are ignored. The call's deadline bounds it by cancellation.
Stage = Callable[[Offsets, int], Awaitable[Reached]]


class ProgressServicer(services.ProgressServiceServicer):
    """Answers for the stages that a service registers by name."""

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        self._stages = dict(stages)

    async def WaitProgress(  # noqa: N802 -- the wire's name
        self, request: messages.WaitProgressRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> messages.WaitProgressResponse:
        stage = self._stages.get(request.stage)
        if stage is None:
            known = ", ".join(sorted(self._stages))
            raise Poison(
                Reason.OUT_OF_RANGE, f"no stage {request.stage!r} here", field="stage", fix=f"use one of: {known}"
            )
        reached = await stage(from_wire(request.offsets), request.event_time_us)
        return messages.WaitProgressResponse(written=to_wire(reached.written), event_time_us=reached.event_time_us)


def from_wire(offsets: Iterable[messages.TopicPartitionOffset]) -> dict[Partition, int]:
    """Return positions by partition; where one is named twice, the further counts."""
    found: dict[Partition, int] = {}
    for one in offsets:
        partition = Partition(one.topic, one.partition)
        found[partition] = max(found.get(partition, 0), one.next_offset)
    return found


def to_wire(offsets: Offsets) -> list[messages.TopicPartitionOffset]:
    """Return positions as messages, sorted."""
    return [
        messages.TopicPartitionOffset(topic=partition.topic, partition=partition.number, next_offset=offset)
        for partition, offset in sorted(offsets.items())
    ]
