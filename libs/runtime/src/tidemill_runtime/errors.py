"""What can go wrong, as instructions to the runtime.

    TidemillError
    ├── Retryable        the world is not ready: same offset again, after a back-off, a bounded number of times
    │   ├── Overloaded   a bound of ours was reached: the caller should come back after `retry_after_s`
    │   └── StateLost    what `restore` built is gone (a store was replaced): restore and read again from there
    ├── Poison           this input will never be right: dead-letter it with its reason, or answer the caller
    └── Fatal            going on would do harm: crash, the supervisor restarts
        └── Stalled      a consumer has lag and does not advance

Adapters translate library errors into this tree; HTTP and gRPC statuses are given in `grpc_server` and `problems`.
"""

from collections.abc import Sequence

from tidemill_contracts.reasons import Reason


class TidemillError(Exception):
    """The root; never raised itself."""


class Retryable(TidemillError):  # noqa: N818 -- named for what the runtime does
    """The same attempt may succeed later."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    reason = Reason.UNAVAILABLE


class Overloaded(Retryable):
    """A bound was reached; nothing was taken in."""

    reason = Reason.OVERLOADED


class StateLost(Retryable):
    """The state that `restore` returned is no longer true; the runner restores again instead of retrying."""


class Poison(TidemillError):  # noqa: N818 -- named for what the runtime does
    """Input that no retry makes right.

    `reason` is the name that metrics, headers and answers carry; `field` names the part of the input at fault;
    `fix` says what its author should do; `violations`, where several parts are at fault, names each with its sentence.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        fix: str = "",
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field
        self.fix = fix
        self.violations = tuple(violations)


class Fatal(TidemillError):  # noqa: N818 -- named for what the runtime does
    """Going on would do harm; the process ends with a code of its own."""


class Stalled(Fatal):
    """A consumer has lag and has not advanced for too long."""
