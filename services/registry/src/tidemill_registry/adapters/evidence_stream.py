"""Feeds monitoring's paired evidence to the rollout controller, in order."""

from collections.abc import Sequence

from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Assignment, Batch, Pipeline, Record, Restored, Step
from tidemill_runtime.errors import Poison

from tidemill_registry.adapters.model_book import ModelBook
from tidemill_registry.evidence import Paired, UnsoundEvidenceError, read_evidence

TOPIC = "monitoring.metrics.v1"
GROUP = "registry.rollout"


class EvidenceStream(Pipeline[None, Sequence[Paired]]):
    """A stateless pipeline: where a rollout stands lies in PostgreSQL, and evidence weighed twice changes nothing."""

    begins_anew = True

    def __init__(self, models: ModelBook) -> None:
        self._models = models

    async def restore(self, assignment: Assignment) -> Restored[None]:
        """There is nothing to restore."""
        return Restored(None)

    def step(self, state: None, batch: Batch, now_us: int) -> Step[None, Sequence[Paired]]:
        """Pick the evidence out of the metrics."""
        decoded, refused = batch.decode(_decode)
        evidence = [paired for values in decoded.values() for paired in values if paired is not None]
        return Step(None, evidence, refused)

    async def apply(self, effects: Sequence[Paired]) -> None:
        """Weigh each piece in its own transaction."""
        for paired in effects:
            await self._models.weigh(paired)


def _decode(record: Record) -> Paired | None:
    try:
        return read_evidence(record.value)
    except UnsoundEvidenceError as error:
        raise Poison(Reason.UNDECODABLE, str(error)) from error
