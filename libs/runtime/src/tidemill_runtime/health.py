"""What a service says of itself: live (restart me if not), ready (send me work)."""

from collections.abc import Callable

# A check returns None when all is well, else a sentence that says what is wrong.
Check = Callable[[], str | None]


class Health:
    """Liveness and readiness from named checks; every answer is computed when asked."""

    def __init__(self) -> None:
        # Set by the lifecycle: everything is open and the service is not stopping.
        self.opened = False
        self._live: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}

    def require_live(self, name: str, check: Check) -> None:
        """Register what must hold, or the process should be replaced."""
        self._live[name] = check

    def require_ready(self, name: str, check: Check) -> None:
        """Register what must hold, or no work should be sent here."""
        self._ready[name] = check

    def live(self) -> dict[str, str]:
        """Return what is wrong by name; empty when live."""
        return _faults(self._live)

    def ready(self) -> dict[str, str]:
        """Return what is wrong by name; empty when ready."""
        starting = {} if self.opened else {"lifecycle": "the service is starting or stopping"}
        return starting | _faults(self._live) | _faults(self._ready)


def _faults(checks: dict[str, Check]) -> dict[str, str]:
    found = {name: check() for name, check in checks.items()}
    return {name: fault for name, fault in found.items() if fault is not None}
