"""What goes wrong between a client and what it talks to."""


class ClientError(Exception):
    """No answer, or the answer no; `reached` tells which, `reason` is the named one where there is one."""

    def __init__(self, message: str, *, reached: bool, reason: str = "", field: str = "") -> None:
        super().__init__(message)
        self.reached = reached
        self.reason = reason
        self.field = field
