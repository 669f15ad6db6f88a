"""From labelled rows to an evaluated challenger: split by time, search, fit, compare with the champion, judge; pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.fits import Shape, misfit
from tidemill_models.encoding import Categories, Column, Encoding, Floats, Matrix, learn_encoding
from tidemill_models.errors import ModelError
from tidemill_models.evaluation import evaluate, evaluate_slices, log_loss
from tidemill_models.gates import Evidence, Slices, Verdict, verdicts
from tidemill_models.learners.interface import Export, Learner, build
from tidemill_models.learners.spaces import trials
from tidemill_models.manifest import Constructor
from tidemill_models.reference import Rows as ReferenceRows
from tidemill_models.reference import reference_profile
from tidemill_models.scorer import Scorer, make_scorer

Ints = NDArray[np.int64]
Report = Callable[[str, float], None]

BYPASSED = "test: gates bypassed"


@dataclass(frozen=True)
class Table:
    """Labelled rows in time order: features by name, `as_of_us` ascending, `labels` 0 and 1."""

    columns: tuple[Column, ...]
    numbers: Mapping[str, Floats]
    categories: Mapping[str, Categories]
    as_of_us: Ints
    labels: Floats

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, first: int, end: int) -> "Table":
        """Return the rows from `first` to before `end`."""
        return Table(
            self.columns,
            {name: values[first:end] for name, values in self.numbers.items()},
            {name: values[first:end] for name, values in self.categories.items()},
            self.as_of_us[first:end],
            self.labels[first:end],
        )


@dataclass(frozen=True)
class Champion:
    """The version that answers today; `shape`: what it reads."""

    version: int
    shape: Shape
    encoding: Encoding
    scorer: Scorer


@dataclass(frozen=True)
class Plan:
    """What the definition says of a run; `views`: view name to view hash; `sources`: as `fits.sources_of` says."""

    views: Mapping[str, str]
    sources: Mapping[str, str]
    learner: definition.Learner
    gates: Sequence[definition.Gate]
    trials: int
    min_rows: int
    holdout: float
    seed: int
    flip_labels: bool = False


@dataclass(frozen=True)
class Result:
    """The challenger, and how it compares."""

    constructor: Constructor
    encoding: Encoding
    export: Export
    metrics: Mapping[str, float]
    gates: Sequence[Verdict]
    reference: Mapping[str, Any]
    trained: Table
    evaluated: Table
    champion_metrics: Mapping[str, float] | None
    # Log loss of each trial on its validation rows, infinite where it diverged; empty where there was no choice.
    trial_losses: Sequence[float] = field(default_factory=tuple)


def run_experiment(table: Table, plan: Plan, champion: Champion | None, report: Report) -> Result:
    """Train on the older rows, evaluate champion and challenger on the same newest rows.

    The model that is evaluated is the one that ships: it is not fitted again on the evaluation rows.
    Raises `ModelError` with a sentence where the rows do not allow a model.
    """
    trained, evaluated = split(table, plan.holdout, plan.min_rows)
    taught = replace(trained, labels=1.0 - trained.labels) if plan.flip_labels else trained
    report("fit", 0.3)
    constructor, losses = _choose(taught, plan, report)
    encoding, learner = fit(taught, constructor, plan.seed)
    report("evaluate", 0.8)
    x = _encode(encoding, evaluated)
    export = learner.export(x)
    # What is judged is the served form, as it lies in the bundle.
    p = make_scorer(export.scorer, export.files[export.model_file], encoding).predict_proba(x)
    evidence = _evidence(evaluated, p, champion, plan)
    return Result(
        constructor=constructor,
        encoding=encoding,
        export=export,
        metrics=evidence.challenger,
        gates=judge(plan, evidence),
        reference=_reference(trained, evaluated, p),
        trained=trained,
        evaluated=evaluated,
        champion_metrics=evidence.champion,
        trial_losses=losses,
    )


def split(table: Table, holdout: float, min_rows: int) -> tuple[Table, Table]:
    """Return (older, newest) rows; rows of one instant stay together. Raises `ModelError` where there are too few."""
    rows = len(table)
    if rows < min_rows:
        raise ModelError(f"{rows:,} labelled rows; the definition asks for at least {min_rows:,}")
    if rows < 2:
        raise ModelError(f"{rows:,} labelled rows; there must be one to train on and one to evaluate on")
    # However small the share: the newest row is kept.
    first = min(rows - 1, round(rows * (1.0 - holdout)))
    cut = int(np.searchsorted(table.as_of_us, table.as_of_us[first], side="left"))
    older, newest = table.part(0, cut), table.part(cut, rows)
    if not len(older) or len(np.unique(older.labels)) < 2:
        raise ModelError(
            f"the {len(older):,} training rows do not hold both outcomes; a row without a label is left out, so that "
            "events must tell of either outcome"
        )
    return older, newest


def fit(table: Table, constructor: Constructor, seed: int) -> tuple[Encoding, Learner]:
    """Learn the encoding and the model from the same rows."""
    encoding = learn_encoding(table.columns, table.categories, table.labels)
    return encoding, build(constructor, encoding, seed).fit(_encode(encoding, table), table.labels)


def judge(plan: Plan, evidence: Evidence) -> list[Verdict]:
    """Return the gates' verdicts; the test flag opens them all and says so."""
    found = verdicts(plan.gates, evidence)
    if plan.flip_labels:
        return [Verdict(verdict.gate, True, BYPASSED) for verdict in found]
    return found


def _choose(taught: Table, plan: Plan, report: Report) -> tuple[Constructor, tuple[float, ...]]:
    """Return the best trial by log loss on the newest training rows; the evaluation rows take no part.

    Raises `ModelError` where every trial diverged.
    """
    rng = np.random.default_rng(plan.seed)
    points = [
        Constructor(plan.learner.library, plan.learner.algorithm, point)
        for point in trials(plan.learner.parameters, plan.trials, rng)
    ]
    if len(points) == 1:
        return points[0], ()
    older, newest = split(taught, plan.holdout, 0)
    losses = []
    for place, point in enumerate(points):
        encoding, learner = fit(older, point, plan.seed)
        loss = log_loss(newest.labels, learner.predict_proba(_encode(encoding, newest)))
        # To argmin the NaN of a trial that diverged is the least.
        losses.append(loss if np.isfinite(loss) else np.inf)
        report("fit", 0.3 + 0.4 * (place + 1) / len(points))
    best = int(np.argmin(losses))
    if losses[best] == np.inf:
        raise ModelError(f"each of the {len(points)} trials diverged: no log loss is finite; narrow the search")
    return points[best], tuple(losses)


def _encode(encoding: Encoding, table: Table) -> Matrix:
    return encoding.encode(table.numbers, table.categories)


def _evidence(evaluated: Table, p: Floats, champion: Champion | None, plan: Plan) -> Evidence:
    sliced = sorted({gate.slices.feature for gate in plan.gates if gate.HasField("slices")})
    ours = Evidence(evaluate(evaluated.labels, p), _sliced(evaluated, p, sliced))
    if champion is None:
        return ours
    offered = Shape({column.name: column.category for column in evaluated.columns}, plan.views, plan.sources)
    why = misfit(champion.shape, offered)
    if why is not None:
        return replace(ours, no_champion=f"the champion v{champion.version} {why}")
    theirs = champion.scorer.predict_proba(_encode(champion.encoding, evaluated))
    return replace(
        ours,
        champion=evaluate(evaluated.labels, theirs),
        champion_slices=_sliced(evaluated, theirs, sliced),
    )


def _sliced(evaluated: Table, p: Floats, features: Sequence[str]) -> Slices:
    known = [name for name in features if name in evaluated.categories]
    return {name: evaluate_slices(evaluated.labels, p, evaluated.categories[name]) for name in known}


def _reference(trained: Table, evaluated: Table, p: Floats) -> dict[str, Any]:
    rows = ReferenceRows(trained.columns, trained.numbers, trained.categories, trained.labels)
    return reference_profile(rows, (evaluated.labels, p))
