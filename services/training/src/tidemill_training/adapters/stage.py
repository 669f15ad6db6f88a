"""WaitProgress stage "runs": everything asked for up to the offsets has been trained, registered and published."""

from tidemill_runtime.faust_app import FaustApp
from tidemill_runtime.positions import Offsets
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import Reached

from tidemill_training.adapters.ledger import Ledger
from tidemill_training.adapters.run_feed import RunFeed
from tidemill_training.requests import TOPIC

# Another replica's endings are not heard here, so the ledger is looked at now and then.
_LOOK_EVERY_S = 0.5


class RunsStage:
    """Answers the stage; the call's deadline bounds it."""

    def __init__(self, agents: FaustApp, ledger: Ledger, feed: RunFeed, producer: Producer) -> None:
        self._agents = agents
        self._ledger = ledger
        self._feed = feed
        self._producer = producer

    async def __call__(self, offsets: Offsets, event_time_us: int) -> Reached:
        """Return once no run asked for before `offsets` is open."""
        del event_time_us
        wanted = {place: offset for place, offset in offsets.items() if place.topic == TOPIC}
        if wanted:
            await self._agents.reached(wanted)
            while await self._ledger.unfinished(wanted):
                await self._feed.changed(_LOOK_EVERY_S)
        return Reached(self._producer.written)
