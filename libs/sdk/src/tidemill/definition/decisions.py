"""Gates, rollout, monitors and the retraining policy of a pipeline."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from tidemill_contracts.bounds import (
    MAX_ITEMS,
    MAX_LABELS,
    MAX_LIMIT,
    MAX_METRIC,
    MAX_SHARE,
    MIN_LIMIT,
    MIN_SHARE,
)
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill.declarations.pipelines import (
    AtLeast,
    AtMost,
    Better,
    Canary,
    Covariates,
    Drift,
    Every,
    Performance,
    Pipeline,
    Predictions,
    Retrain,
    Shadow,
    Slices,
)
from tidemill.declarations.unsupported import Unsupported
from tidemill.definition.report import Report, named, unknown
from tidemill.definition.source import line_of_text

METRICS = ("brier", "calibration_error", "log_loss", "roc_auc")
# The one metric that is a mean over outcomes, so that a detector can watch it label by label.
MONITORED = ("log_loss",)


def _items(
    pipeline: Pipeline, what: str, given: object, known: tuple[type[Any], ...], report: Report
) -> Iterator[tuple[str, Any]]:
    """Yield each item of a list that is of a known class, with its subject; report the others."""
    subject = f"{named('pipeline', pipeline.name)}: {what}"
    if not isinstance(given, Sequence) or isinstance(given, str):
        fix = f"write [tm.{type(given).__name__}(…)]" if isinstance(given, known) else f"not {given!r:.80}"
        report.add(pipeline.origin, subject, f"a list is wanted, {fix}")
        return
    if len(given) > MAX_ITEMS:
        report.add(pipeline.origin, subject, f"{len(given)} entries are too many; at most {MAX_ITEMS} are possible")
    for item in given:
        if isinstance(item, Unsupported):
            report.refuse(item, subject)
        elif isinstance(item, known):
            yield f"{subject}: {type(item).__name__}", item
        else:
            names = ", ".join(f"tm.{kind.__name__}" for kind in known)
            report.add(pipeline.origin, subject, f"one of {names} is wanted, not {item!r:.80}")


def compile_gates(pipeline: Pipeline, categories: Collection[str] | None, report: Report) -> list[definition.Gate]:
    """Return the gates that are sound; `categories` are the features that can slice, None where faults hide some."""
    kinds = (Better, AtLeast, AtMost, Slices)
    gates = []
    for subject, item in _items(pipeline, "gates", pipeline.gates, kinds, report):
        if not report.one_of(item.origin, f"{subject}: metric", item.metric, METRICS):
            continue
        match item:
            case Better():
                if report.one_of(item.origin, f"{subject}: than", item.than, ("champion",)):
                    gates.append(definition.Gate(better=definition.Better(metric=item.metric, than=item.than)))
            case Slices():
                gate = _slices(subject, item, categories, report)
                gates += [gate] if gate is not None else []
            case _:
                if report.number(item.origin, subject, item.value, low=0, high=_most(item.metric)):
                    bound = definition.Bound(metric=item.metric, value=item.value)
                    least = isinstance(item, AtLeast)
                    gates.append(definition.Gate(at_least=bound) if least else definition.Gate(at_most=bound))
    return gates


def _slices(subject: str, item: Slices, categories: Collection[str] | None, report: Report) -> definition.Gate | None:
    if categories is not None and (not isinstance(item.feature, str) or item.feature not in categories):
        line = line_of_text(item.origin, item.feature)
        hint = unknown(item.feature, categories, "category feature") if categories else "the pipeline has no category"
        report.add(item.origin, subject, hint, line=line)
        return None
    most = _most(item.metric)
    if not report.number(item.origin, f"{subject}: max_regression", item.max_regression, low=0, high=most):
        return None
    return definition.Gate(
        slices=definition.Slices(feature=str(item.feature), metric=item.metric, max_regression=item.max_regression)
    )


def _most(metric: str) -> float:
    """Return the most that a metric can be; of log loss, more than any model has."""
    return MAX_METRIC if metric == "log_loss" else 1


def compile_rollout(pipeline: Pipeline, report: Report) -> list[definition.RolloutStep]:
    """Return the steps that are sound; each gives the challenger at least the share of the one before."""
    steps: list[definition.RolloutStep] = []
    share = 0.0
    for subject, item in _items(pipeline, "rollout", pipeline.rollout, (Shadow, Canary), report):
        duration = report.duration(item.origin, subject, item.duration)
        labels = report.number(
            item.origin, f"{subject}: min_labels", item.min_labels, low=1, high=MAX_LABELS, whole=True
        )
        kind, own_share = definition.ROLLOUT_KIND_SHADOW, 0.0
        if isinstance(item, Canary):
            kind = definition.ROLLOUT_KIND_CANARY
            if not report.number(item.origin, f"{subject}: share", item.share, low=MIN_SHARE, high=MAX_SHARE):
                continue
            own_share = float(item.share)
        if own_share < share:
            report.add(item.origin, subject, "each step gives the challenger at least the share of the one before")
        share = max(share, own_share)
        if duration is not None and labels:
            step = definition.RolloutStep(kind=kind, share=own_share, duration_ms=duration, min_labels=item.min_labels)
            steps.append(step)
    return steps


def compile_monitors(pipeline: Pipeline, report: Report) -> list[definition.Monitor]:
    """Return the monitors that are sound, one of each kind at most."""
    monitors = []
    seen: set[str] = set()
    kinds = (Performance, Covariates, Predictions)
    for subject, item in _items(pipeline, "monitors", pipeline.monitors, kinds, report):
        if type(item).__name__ in seen:
            report.add(item.origin, subject, "one of a kind is enough")
            continue
        seen.add(type(item).__name__)
        match item:
            case Performance():
                known = report.one_of(item.origin, f"{subject}: metric", item.metric, MONITORED)
                sound = report.number(item.origin, f"{subject}: limit", item.limit, low=MIN_LIMIT, high=MAX_LIMIT)
                if known and sound:
                    monitor = definition.PerformanceMonitor(metric=item.metric, limit=item.limit)
                    monitors.append(definition.Monitor(performance=monitor))
            case Covariates():
                monitors.append(definition.Monitor(covariates=definition.CovariateMonitor()))
            case _:
                monitors.append(definition.Monitor(predictions=definition.PredictionMonitor()))
    return monitors


def compile_retrain(pipeline: Pipeline, report: Report) -> definition.RetrainPolicy | None:
    """Return the policy; None without one, or with its faults reported."""
    retrain = pipeline.retrain
    if retrain is None:
        return None
    subject = f"{named('pipeline', pipeline.name)}: retrain"
    if not isinstance(retrain, Retrain):
        report.add(pipeline.origin, subject, f"tm.Retrain(…) is wanted, not {retrain!r:.80}")
        return None
    before = len(report.problems)
    policy = definition.RetrainPolicy(on=_triggers(pipeline, retrain, report))
    policy.cooldown_ms = report.duration(retrain.origin, f"{subject}: cooldown", retrain.cooldown, zero=True) or 0
    targets: tuple[tuple[str, str, Callable[[definition.Budget], None]], ...] = (
        ("budget", retrain.budget, policy.budget.CopyFrom),
        ("false_alarms", retrain.false_alarms, policy.false_alarms.CopyFrom),
    )
    for name, text, store in targets:
        found = report.budget(retrain.origin, f"{subject}: {name}", text)
        if found is None:
            continue
        count, period_ms = found
        if count < 1 or period_ms < 1:
            message = "a count and a period above zero are needed"
            report.add(retrain.origin, f"{subject}: {name}", message, line=line_of_text(retrain.origin, text))
            continue
        store(definition.Budget(count=count, period_ms=period_ms))
    if not policy.on and len(report.problems) == before:
        report.add(retrain.origin, subject, "on=[…] names no trigger; there are tm.Drift() and tm.Every(…)")
    return policy if len(report.problems) == before else None


def _triggers(pipeline: Pipeline, retrain: Retrain, report: Report) -> list[definition.RetrainTrigger]:
    triggers: list[definition.RetrainTrigger] = []
    for subject, item in _items(pipeline, "retrain", retrain.on, (Drift, Every), report):
        kind = "drift" if isinstance(item, Drift) else "every"
        if any(trigger.HasField("drift") if kind == "drift" else trigger.HasField("every") for trigger in triggers):
            report.add(item.origin, subject, "one of a kind is enough")
        elif isinstance(item, Every):
            period = report.duration(item.origin, subject, item.period)
            if period is not None:
                triggers.append(definition.RetrainTrigger(every=definition.ScheduleTrigger(period_ms=period)))
        else:
            monitors = pipeline.monitors
            # What is no list has a fault of its own.
            if isinstance(monitors, Sequence) and not any(isinstance(one, Performance) for one in monitors):
                fix = 'add tm.Performance("log_loss", limit=…) to monitors'
                report.add(item.origin, subject, f"nothing watches the loss; {fix}")
            triggers.append(definition.RetrainTrigger(drift=definition.DriftTrigger()))
    return triggers
