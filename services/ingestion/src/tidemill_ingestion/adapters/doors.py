"""The door role: what gRPC and HTTP stand on, and the stages that callers wait for."""

from collections.abc import Callable, Sequence

from fastapi import FastAPI
from tidemill_runtime.errors import Retryable
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.positions import Offsets
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import Reached, Stage

from tidemill_ingestion.adapters.bridge import Bridge
from tidemill_ingestion.adapters.flows import Flows
from tidemill_ingestion.adapters.http import build_app
from tidemill_ingestion.adapters.publisher import Publisher
from tidemill_ingestion.adapters.rpc import IngestionServicer
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.reporting import TOPIC as QUALITY
from tidemill_ingestion.settings import Settings


class Doors:
    """Both doors on one publisher."""

    def __init__(
        self,
        gates: Gates,
        producer: Producer,
        follower: TopicFollower,
        settings: Settings,
        *,
        clock: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._producer = producer
        self._follower = follower
        self._settings = settings
        self._publisher = Publisher(gates, producer, settings, clock=clock, new_id=new_id)
        # Closed before the servers, so that streaming requests end with the verdicts of what they sent.
        self.flows = Flows(self._publisher, settings)

    def servicer(self) -> IngestionServicer:
        """Return the gRPC door."""
        return IngestionServicer(self._publisher, self.flows, self._settings, self._require_definitions)

    def http(self) -> FastAPI:
        """Return the HTTP door."""
        return build_app(self._publisher, self.flows, self._settings, self._require_definitions)

    def stages(self, bridges: Sequence[Bridge]) -> dict[str, Stage]:
        """Return what `WaitProgress` waits for."""

        async def publish(offsets: Offsets, event_time_us: int) -> Reached:
            await self._follower.reached(offsets)
            await self._publisher.settled()
            return Reached(self._events_written())

        async def bridge(offsets: Offsets, event_time_us: int) -> Reached:
            await self._follower.reached(offsets)
            for one in bridges:
                await one.reached(offsets)
            return Reached(self._events_written())

        return {"publish": publish, "bridge": bridge}

    def _events_written(self) -> Offsets:
        """Return where the log ends; operators' messages come by the clock, and are nobody's effect."""
        return {place: end for place, end in self._producer.written.items() if place.topic != QUALITY}

    def _require_definitions(self) -> None:
        if not self._follower.caught_up.is_set():
            raise Retryable("the registered streams are not read yet", retry_after_s=1.0)
