"""What goes wrong between a client and what it talks to."""

from collections.abc import Sequence


class ClientError(Exception):
    """No answer, or the answer no; `reached` tells which, `reason` is the named one where there is one.

    `violations`: every part at fault with its sentence, where the answer names several.
    """

    def __init__(
        self,
        message: str,
        *,
        reached: bool,
        reason: str = "",
        field: str = "",
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.reached = reached
        self.reason = reason
        self.field = field
        self.violations = tuple(violations)
