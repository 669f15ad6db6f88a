"""How far event time has come, as monitoring publishes it: a fold of `monitoring.clock.v1`; pure."""

from tidemill_contracts.canonical import from_json
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Poison

TOPIC = "monitoring.clock.v1"


class Clocks:
    """The clock of every pipeline."""

    def __init__(self) -> None:
        self._us: dict[str, int] = {}

    def fold(self, value: bytes | None) -> None:
        """Take in one record. Raises `Poison` for one that is no clock."""
        if not value:
            return
        try:
            record = from_json(value, monitoring.ClockRecord())
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no clock record: {error}") from error
        self._us[record.pipeline] = from_timestamp(record.event_time)

    def now_us(self) -> int:
        """Return the furthest clock, so that no row is said to have been available too early; 0 before the first."""
        return max(self._us.values(), default=0)
