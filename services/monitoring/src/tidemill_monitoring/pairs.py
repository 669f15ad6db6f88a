"""Champion and challenger on the same labelled requests, summed since the present rollout step began."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tidemill_monitoring.windows import Floats, losses, running_sum, standard_error


class RolloutStep(NamedTuple):
    """The step that is under way: what a deployment record says of it."""

    deployment_revision: int
    champion: int
    challenger: int
    step: int
    began_us: int

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What makes it another step; a deployment revision alone (a hold, a baseline) does not."""
        return (self.champion, self.challenger, self.step, self.began_us)


class Evidence(NamedTuple):
    """Means over the pairs so far; `difference` is challenger − champion, so negative is better."""

    pairs: int
    champion_loss: float
    challenger_loss: float
    difference: float
    standard_error: float


@dataclass
class Pairs:
    """Sums over the pairs of one step."""

    key: tuple[int, ...] = ()
    count: int = 0
    champion: float = 0.0
    challenger: float = 0.0
    squares: float = 0.0

    def follow(self, step: RolloutStep | None) -> None:
        """Begin anew where the step is another one."""
        key = step.key if step else ()
        if tuple(self.key) != key:
            self.key = key
            self.count, self.champion, self.challenger, self.squares = 0, 0.0, 0.0, 0.0

    def add(self, y: Floats, champion: Floats, challenger: Floats) -> None:
        """Take in pairs: label and both probabilities, float64[n] each."""
        first, second = losses(y, champion), losses(y, challenger)
        self.count += len(y)
        self.champion = running_sum(self.champion, first)
        self.challenger = running_sum(self.challenger, second)
        self.squares = running_sum(self.squares, (second - first) ** 2)

    def evidence(self) -> Evidence:
        """Return the means; zeros without pairs."""
        count = max(self.count, 1)
        total = self.challenger - self.champion
        return Evidence(
            self.count,
            self.champion / count,
            self.challenger / count,
            total / count,
            standard_error(total, self.squares, self.count),
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return {name: getattr(self, name) for name in ("key", "count", "champion", "challenger", "squares")}

    @classmethod
    def restore(cls, stored: Mapping[str, Any]) -> "Pairs":
        """Return what `snapshot` gave."""
        return cls(**{**stored, "key": tuple(stored["key"])})
