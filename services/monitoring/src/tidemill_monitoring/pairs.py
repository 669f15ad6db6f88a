"""Champion and challenger on the same labelled requests, summed since the rollout began.

A version scores alike in shadow and in canary, so evidence gathers over the whole rollout; only the number of pairs is
counted anew at each step. The standard error is clustered by tick (an hour of labels), since requests of one hour share
their weather: Cameron & Miller, A Practitioner's Guide to Cluster-Robust Inference (2015), equation 11 for a mean.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from tidemill_monitoring.windows import Floats, losses, running_sum


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
    """Means over all pairs of the rollout; `difference` is challenger − champion, so negative is better.

    `pairs`: of the present step; `total_pairs` and `hours`: of the rollout.
    """

    pairs: int
    total_pairs: int
    hours: int
    champion_loss: float
    challenger_loss: float
    difference: float
    standard_error: float


@dataclass
class Pairs:
    """Sums over the pairs of one rollout; those of the open hour stand apart until it is closed."""

    key: tuple[int, ...] = ()
    step_count: int = 0
    count: int = 0
    champion: float = 0.0
    challenger: float = 0.0
    hours: int = 0
    # Over closed hours, each with n pairs whose differences sum to s: Σ s², Σ s·n and Σ n².
    squares: float = 0.0
    products: float = 0.0
    sizes: float = 0.0
    open_count: int = 0
    open_difference: float = 0.0

    def follow(self, step: RolloutStep | None) -> None:
        """Count anew where the step is another one; begin anew where the rollout is."""
        key = step.key if step else ()
        if tuple(self.key) == key:
            return
        if tuple(self.key[:2]) != key[:2]:
            vars(self).update(vars(Pairs()))
        self.key, self.step_count = key, 0

    def add(self, y: Floats, champion: Floats, challenger: Floats, *, before_step: int = 0) -> None:
        """Take in pairs of the open hour: label and both probabilities, float64[n] each.

        `before_step`: how many of them were asked before the present step began.
        """
        first, second = losses(y, champion), losses(y, challenger)
        self.step_count += len(y) - before_step
        self.count += len(y)
        self.champion = running_sum(self.champion, first)
        self.challenger = running_sum(self.challenger, second)
        self.open_count += len(y)
        self.open_difference = running_sum(self.open_difference, second - first)

    def close_hour(self) -> None:
        """End the open hour; one without pairs does not count."""
        if self.open_count:
            self.hours += 1
            self.squares += self.open_difference**2
            self.products += self.open_difference * self.open_count
            self.sizes += self.open_count**2
        self.open_count, self.open_difference = 0, 0.0

    def evidence(self) -> Evidence:
        """Return the means up to the last closed hour; zeros without pairs."""
        count = max(self.count, 1)
        mean = (self.challenger - self.champion) / count
        return Evidence(
            self.step_count,
            self.count,
            self.hours,
            self.champion / count,
            self.challenger / count,
            mean,
            self._standard_error(mean),
        )

    def _standard_error(self, mean: float) -> float:
        if self.hours < 2:
            return 0.0
        spread = max(0.0, self.squares - 2 * mean * self.products + mean * mean * self.sizes)
        return math.sqrt(spread * self.hours / (self.hours - 1)) / self.count

    def snapshot(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return asdict(self)

    @classmethod
    def restore(cls, stored: Mapping[str, Any]) -> "Pairs":
        """Return what `snapshot` gave."""
        return cls(**{**stored, "key": tuple(stored["key"])})
