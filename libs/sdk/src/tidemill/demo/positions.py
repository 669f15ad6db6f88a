"""Positions in topics: which of them grew, and who has to hear of it."""

from collections.abc import Iterable

from tidemill_contracts.progress.v1 import progress_pb2 as progress

Offset = progress.TopicPartitionOffset
Stage = tuple[str, str]

# Whose work a topic's growth causes. Topics that cause none that a later prediction depends on are absent.
FOLLOWERS: dict[str, tuple[Stage, ...]] = {
    "registry.pipelines.v1": (
        ("ingestion", "publish"),
        ("feature", "online"),
        ("serving", "deployments"),
        ("monitoring", "join"),
    ),
    "registry.models.v1": (("monitoring", "join"),),
    "registry.deployments.v1": (("serving", "deployments"), ("monitoring", "join")),
    "monitoring.metrics.v1": (("registry", "outbox"),),
    "monitoring.retrain-requests.v1": (("training", "runs"),),
    "training.runs.v1": (("registry", "outbox"),),
}


class Seen:
    """The furthest end offset heard of for every partition."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, int], int] = {}

    def grown(self, offsets: Iterable[Offset]) -> list[Offset]:
        """Take in end offsets and return those that lie beyond what was known."""
        grown = []
        for offset in offsets:
            place = (offset.topic, offset.partition)
            if offset.next_offset > self._ends.get(place, 0):
                self._ends[place] = offset.next_offset
                grown.append(offset)
        return grown


def followers(grown: Iterable[Offset]) -> list[Stage]:
    """Return the stages that these positions set to work, each once, in the order of the data's flow."""
    stages: dict[Stage, None] = {}
    for offset in grown:
        stages.update(dict.fromkeys(FOLLOWERS.get(offset.topic, ())))
    return list(stages)
