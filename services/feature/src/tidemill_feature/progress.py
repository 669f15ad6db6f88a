"""How far views are that are being built: pure."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Offsets of one partition: where building began, what comes next, and how far the folded views are."""

    first: int
    next: int
    end: int

    @property
    def remaining(self) -> int:
        return max(0, self.end - self.next)

    def pack(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, raw: bytes) -> "Progress":
        """Return what the JSON says."""
        return cls(**json.loads(raw))
