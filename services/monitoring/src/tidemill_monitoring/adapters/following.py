"""Follows the registry's three topics, and hands the joiner new streams as they are registered."""

from collections.abc import Callable

import structlog
from tidemill_runtime.batches import Record
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.health import Health
from tidemill_runtime.positions import Offsets
from tidemill_runtime.settings import KafkaSettings

from tidemill_monitoring import metrics
from tidemill_monitoring.registered import Registered

TOPICS = ("registry.pipelines.v1", "registry.deployments.v1", "registry.models.v1")

log = structlog.get_logger(__name__)


class Following:
    """Definitions, deployments and versions as they are told; `changed` is called after each definition."""

    def __init__(self, kafka: KafkaSettings, registered: Registered, health: Health) -> None:
        self._registered = registered
        self._changed: Callable[[], None] = lambda: None
        folds = (self._fold_definition, self._fold_deployment, self._fold_version)
        self.followers = [
            # One partition each: the broker answers a waiting fetch at once, so that nobody waits the longer for it.
            TopicFollower(kafka, topic, fold, health=health, fetch_wait_ms=500)
            for topic, fold in zip(TOPICS, folds, strict=True)
        ]

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call this after each definition from now on."""
        self._changed = changed

    async def caught_up(self) -> None:
        """Return once everything that was registered at the start is known."""
        for follower in self.followers:
            await follower.caught_up.wait()

    async def reached(self, offsets: Offsets) -> None:
        """Return once everything before these offsets is known."""
        for follower in self.followers:
            await follower.positions.reached(offsets)

    def _fold_definition(self, record: Record) -> None:
        before = self._registered.faults
        self._registered.fold_definition(record.value)
        for pipeline, fault in sorted(self._registered.faults.items() - before.items()):
            log.error("pipeline_cannot_be_joined", pipeline=pipeline, fault=fault)
        metrics.faulty.set(len(self._registered.faults))
        self._changed()

    def _fold_deployment(self, record: Record) -> None:
        self._registered.fold_deployment(record.value)

    def _fold_version(self, record: Record) -> None:
        self._registered.fold_version(record.value)
