"""Whether a challenger may go on: one verdict per gate of the definition, each with a sentence."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_models.evaluation import LOWER_IS_BETTER, METRICS

Metrics = Mapping[str, float]
# Category feature → value → metrics.
Slices = Mapping[str, Mapping[str, Metrics]]

# A slice with fewer rows says more about luck than about the model.
MIN_SLICE_ROWS = 200


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate's answer; `reason` is a sentence with the figures."""

    gate: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Evidence:
    """Challenger and champion on the same newest rows."""

    challenger: Metrics
    challenger_slices: Slices = field(default_factory=dict)
    # None: there is no champion to compare with, and `no_champion` says why.
    champion: Metrics | None = None
    champion_slices: Slices = field(default_factory=dict)
    no_champion: str = "there is no champion yet"


def verdicts(gates: Iterable[definition.Gate], evidence: Evidence) -> list[Verdict]:
    """Return one verdict per gate, in order. Raises `ValueError` for a gate or metric that is not known."""
    return [_verdict(gate, evidence) for gate in gates]


def _verdict(gate: definition.Gate, evidence: Evidence) -> Verdict:
    match gate.WhichOneof("gate"):
        case "better":
            return _better(gate.better, evidence)
        case "at_least":
            return _bound(gate.at_least, evidence, least=True)
        case "at_most":
            return _bound(gate.at_most, evidence, least=False)
        case "slices":
            return _slices(gate.slices, evidence)
        case _:
            raise ValueError("a gate that says nothing: give better, at_least, at_most or slices")


def _known(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: known are {', '.join(sorted(METRICS))}")
    return metric


def _better(gate: definition.Better, evidence: Evidence) -> Verdict:
    metric = _known(gate.metric)
    name = f"better({metric}, than={gate.than or 'champion'})"
    if evidence.champion is None:
        return Verdict(name, True, f"{metric}: {evidence.no_champion}, so the gate is open.")
    ours, theirs = evidence.challenger.get(metric), evidence.champion.get(metric)
    if ours is None or theirs is None:
        return Verdict(name, False, f"{metric} is not defined on the evaluation rows, so nothing shows an improvement.")
    gain = theirs - ours if metric in LOWER_IS_BETTER else ours - theirs
    word = "beats" if gain > 0 else "does not beat"
    rows = f"{int(evidence.challenger['rows']):,} rows"
    return Verdict(name, gain > 0, f"{metric} {ours:.4f} {word} the champion's {theirs:.4f} on the same {rows}.")


def _bound(gate: definition.Bound, evidence: Evidence, *, least: bool) -> Verdict:
    metric = _known(gate.metric)
    name = f"{'at_least' if least else 'at_most'}({metric}, {gate.value:g})"
    value = evidence.challenger.get(metric)
    if value is None:
        return Verdict(name, False, f"{metric} is not defined on the evaluation rows (one class only, or no rows).")
    passed = value >= gate.value if least else value <= gate.value
    sign = ("≥" if passed else "<") if least else ("≤" if passed else ">")
    return Verdict(name, passed, f"{metric} {value:.4f} {sign} {gate.value:g}.")


def _slices(gate: definition.Slices, evidence: Evidence) -> Verdict:
    metric = _known(gate.metric)
    name = f"slices({gate.feature}, {metric}, {gate.max_regression:g})"
    if evidence.champion is None:
        return Verdict(name, True, f"{metric} per {gate.feature}: {evidence.no_champion}, so the gate is open.")
    if gate.feature not in evidence.challenger_slices:
        raise ValueError(f"slices: {gate.feature!r} is no category feature of the pipeline")
    regressions = _regressions(metric, evidence, gate.feature)
    if not regressions:
        return Verdict(name, True, f"No {gate.feature} has {MIN_SLICE_ROWS} evaluation rows, so no slice is compared.")
    worst = max(regressions, key=lambda value: (regressions[value], value))
    passed = regressions[worst] <= gate.max_regression
    relation = "within" if passed else "beyond"
    return Verdict(
        name,
        passed,
        f"Worst of {len(regressions)} {gate.feature} slices is {worst or 'null'!r}: {metric} "
        f"{regressions[worst]:+.4f} against the champion, {relation} {gate.max_regression:g}.",
    )


def _regressions(metric: str, evidence: Evidence, feature: str) -> dict[str, float]:
    """Return by how much each slice became worse; a slice that is too small is left out."""
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    champion = evidence.champion_slices.get(feature, {})
    return {
        value: sign * (ours[metric] - champion[value][metric])
        for value, ours in evidence.challenger_slices[feature].items()
        if ours["rows"] >= MIN_SLICE_ROWS and metric in ours and metric in champion.get(value, {})
    }
