"""One sentence per change that a person can act on; pure."""

from collections.abc import Sequence

from tidemill_contracts.registry.v1 import records_pb2 as records

from tidemill_registry.rollout import Step

_UNITS = ((86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"))


def span(duration_us: int) -> str:
    """Return a duration in its largest whole unit.

    >>> span(43_200_000_000), span(172_800_000_000), span(0)
    ('12 h', '2 d', '0 s')
    """
    for size_us, unit in _UNITS:
        if duration_us and duration_us % size_us == 0:
            return f"{duration_us // size_us} {unit}"
    return f"{duration_us / 1_000_000:g} s"


def named(version: records.VersionRecord) -> str:
    """Return a version as people call it: `flight-delays v3`."""
    return f"{version.pipeline} v{version.version}"


def refused(version: records.VersionRecord, failed: Sequence[records.GateResult]) -> str:
    grounds = "; ".join(f"{gate.gate}: {gate.reason}" for gate in failed)
    return f"{named(version)} was refused by its gates ({grounds})."


def outdated(version: records.VersionRecord, why: str) -> str:
    return f"{named(version)} {why}: it is of a definition that is not in force any more; train another."


def left_behind(version: records.VersionRecord, why: str) -> str:
    return (
        f"{named(version)} {why}: it answers as before where it is loaded, until another version passes its gates, "
        "and not at all where a field that its views read has another type now, or may be null; "
        f"ask for one: tidemill retrain {version.pipeline} --why ..."
    )


def incomparable(champion: int, why: str) -> str:
    return f"v{champion} {why}, so that both cannot score side by side"


def first(version: records.VersionRecord) -> str:
    return f"{named(version)} answers from now on: the first version that passed its gates{_figures(version)}."


def began(version: records.VersionRecord, champion: int, step: Step) -> str:
    return f"{named(version)} {_placed(step)} beside v{champion}{_terms(step)}."


def advanced(version: records.VersionRecord, champion: int, step: Step, why: str) -> str:
    return f"{named(version)} {_placed(step)} beside v{champion}: {why}{_terms(step)}."


def held(pipeline: str, version: int, why: str) -> str:
    return f"{pipeline} v{version} waits in its rollout step: {why}; check that labels arrive."


def promoted(version: records.VersionRecord, replaced: int, why: str) -> str:
    after = f" in place of v{replaced}" if replaced else ""
    return f"{named(version)} is champion{after}: {why}."


def taken_back(version: records.VersionRecord, champion: int, why: str) -> str:
    return f"{named(version)} was rolled back, v{champion} goes on answering: {why}."


def restored(version: records.VersionRecord, dropped: int, why: str) -> str:
    return f"{named(version)} is champion again, v{dropped} was rolled back: {why}."


def ended(pipeline: str, why: str) -> str:
    return f"{pipeline} was retired{f': {why}' if why else ''}; no version of it answers any more."


def retired(pipeline: str, version: int, why: str) -> str:
    return f"{pipeline} v{version} is retired: {why}."


def compared(pipeline: str, versions: Sequence[int]) -> str:
    if not versions:
        return f"{pipeline} scores no baseline any more."
    return f"{pipeline} scores {', '.join(f'v{version}' for version in versions)} beside the others for comparison."


def _placed(step: Step) -> str:
    if step.kind == "shadow":
        return "scores in shadow"
    return f"answers {step.share:.0%} of requests"


def _terms(step: Step) -> str:
    return f", for at least {span(step.duration_us)} and {step.min_labels:,} labels"


def _figures(version: records.VersionRecord) -> str:
    known = [f"{name} {version.metrics[name]:.4f}" for name in ("log_loss", "roc_auc") if name in version.metrics]
    return f" ({', '.join(known)})" if known else ""
