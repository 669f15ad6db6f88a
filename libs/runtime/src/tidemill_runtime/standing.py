"""What a consumer tells readiness, liveness and its watchdog."""

import structlog

from tidemill_runtime.health import Health

log = structlog.get_logger(__name__)


class Standing:
    """Why one consumer is not ready, whether it stands still, and whether a delay is no stall; `name` as in health."""

    def __init__(self, name: str, health: Health | None) -> None:
        self._name = name
        self.fault: str | None = "not connected yet"
        self._stall: str | None = None
        # It retries or restores, which is bounded elsewhere.
        self.excused = False
        if health is not None:
            health.require_ready(name, lambda: self.fault)
            health.require_live(name, lambda: self._stall)

    def note(self, fault: str | None) -> None:
        """Say why it is not ready; None where it is."""
        self.fault = fault

    def waits(self, fault: str) -> None:
        """Say what is waited for, until it is there; in the log once."""
        if fault != self.fault:
            log.warning("consumer_waits", consumer=self._name, fault=fault)
        self.fault = fault

    def goes_on(self) -> None:
        """Say that nothing is wrong."""
        self.fault, self.excused = None, False

    def stands_still(self, fault: str) -> None:
        """Say that it is assigned, behind, and does not advance."""
        self._stall = self.fault = fault
