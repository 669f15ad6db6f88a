"""Pipelines: what is predicted, from what, how well it must do, and what happens when the world changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.declarations.events import Event
from tidemill.declarations.learners import Learner
from tidemill.declarations.origin import Origin, here
from tidemill.declarations.unsupported import Unsupported, unsupported
from tidemill.declarations.views import Lookup


@dataclass(frozen=True)
class Label:
    """What came true: a condition over the `source`'s events, joined to the request by the field `by`.

    `absent`: the label of a request that no event told of within `wait`; None: such a request has none.
    """

    source: type[Event]
    expression: str
    by: str
    wait: str
    absent: bool | None = None
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Train:
    """Which rows a version learns from, and how many sets of parameters it tries."""

    window: str
    min_rows: int = 1_000
    trials: int = 1
    seed: int = 0
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Better:
    """The challenger beats the champion on the same newest rows."""

    metric: str
    than: str = "champion"
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class AtLeast:
    """A metric reaches a value."""

    metric: str
    value: float
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class AtMost:
    """A metric does not exceed a value."""

    metric: str
    value: float
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Slices:
    """No value of a category feature fares worse than with the champion by more than `max_regression`."""

    feature: str
    metric: str
    max_regression: float
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Shadow:
    """The challenger scores every request and answers none."""

    duration: str
    min_labels: int = 200
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Canary:
    """The challenger answers a share of the requests."""

    share: float
    duration: str
    min_labels: int = 200
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Performance:
    """Watch the loss on labels as they arrive; a change smaller than `limit` does not matter."""

    metric: str
    limit: float
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Covariates:
    """Watch the features against those of training; alerts only."""

    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Predictions:
    """Watch the predictions against those of training; alerts only."""

    origin: Origin = field(default_factory=here, repr=False)


DataQuality = unsupported("tm.DataQuality")
Fairness = unsupported("tm.Fairness")
EstimatedPerformance = unsupported("tm.EstimatedPerformance", "tm.Performance watches the labels themselves")


@dataclass(frozen=True)
class Drift:
    """Retrain when the performance monitor says that the model has lost."""

    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Every:
    """Retrain when this much event time has passed since the last time."""

    period: str
    origin: Origin = field(default_factory=here, repr=False)


NewLabels = unsupported("tm.NewLabels", "there are tm.Drift and tm.Every")


@dataclass(frozen=True)
class Retrain:
    """When to train again, and how often at most."""

    on: Sequence[Drift | Every | Unsupported]
    cooldown: str = "1d"
    budget: str = "6 per 90d"
    false_alarms: str = "1 per 90d"
    origin: Origin = field(default_factory=here, repr=False)


@dataclass(frozen=True)
class Pipeline:
    """One question asked of the stream, and all that keeps its model current."""

    name: str
    request: type[Event]
    features: Mapping[str, Lookup | str]
    label: Label
    learner: Learner | Unsupported
    train: Train
    gates: Sequence[Better | AtLeast | AtMost | Slices | Unsupported] = ()
    rollout: Sequence[Shadow | Canary | Unsupported] = ()
    monitors: Sequence[Performance | Covariates | Predictions | Unsupported] = ()
    retrain: Retrain | None = None
    origin: Origin = field(default_factory=here, repr=False)
