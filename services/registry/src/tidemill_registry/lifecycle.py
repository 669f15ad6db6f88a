"""The life of a pipeline's versions: from one state and one event to records; pure.

registered by training ──gate failed, or of another definition──▶ refused
    │ first one, or one that no champion compares with ───▶ champion ──▶ retired
    └──▶ shadow / canary steps ──evidence──▶ champion
             │ └─ replaced by a newer one ──▶ retired
             └─ worse, or an operator ──────▶ rolled_back
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.fits import Shape, misfit
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.registry.v1 import records_pb2 as records

from tidemill_registry import sentences
from tidemill_registry.rollout import Plan, Progress

CHAMPION = "champion"
CHALLENGER = "challenger"
# One that waits for its rollout may answer next.
IN_USE = ("registered", "shadow", "canary", "champion")
_NOTHING = Shape({}, {})


class NotAllowedError(ValueError):
    """The present state does not allow the change; the message says what does."""


@dataclass(frozen=True, slots=True)
class Order:
    """Who changes something, at which event time, and why."""

    actor: str
    at_us: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout under way: its plan as it was when it began, and where it stands."""

    plan: Plan
    progress: Progress
    # Deployment revision that began the present step: evidence of an earlier one is about something else.
    since_revision: int


@dataclass(frozen=True, slots=True)
class State:
    """What one pipeline's versions are now; `versions` holds at least those that the change may touch.

    `offered`: by the definition in force, where a version or an operator asks for a change; evidence knows nothing of
    it. Which features are categories is not known here.
    """

    pipeline: str
    versions: Mapping[int, records.VersionRecord] = field(default_factory=dict)
    deployment: records.DeploymentRecord | None = None
    rollout: Rollout | None = None
    # The champion before the present one that was not rolled back; 0 when there is none.
    previous_champion: int = 0
    offered: Shape = _NOTHING

    @property
    def champion(self) -> int:
        return self.deployment.champion.version if self.deployment else 0

    @property
    def challenger(self) -> int:
        return self.deployment.challenger.version if self.deployment else 0


@dataclass(frozen=True, slots=True)
class Change:
    """Records to store and publish together; `rollout` is the one under way afterwards."""

    deployment: records.DeploymentRecord | None
    rollout: Rollout | None
    versions: tuple[records.VersionRecord, ...] = ()
    # Alias and the version that it names now; 0 when it names none.
    aliases: tuple[tuple[str, int], ...] = ()


def admit(state: State, candidate: records.VersionRecord, order: Order, plan: Plan, cause_id: str) -> Change:
    """Take in a new version: refuse it, make it champion, or begin its rollout.

    Serving computes all that score beside each other by one definition, the newest. So a version of another one is
    refused, and one beside which the champion could not be computed takes its place without a rollout.
    """
    failed = [gate for gate in candidate.gates if not gate.passed]
    past = outdated(candidate, state.offered)
    if failed or past is not None:
        summary = sentences.refused(candidate, failed) if failed else sentences.outdated(candidate, str(past))
        return Change(state.deployment, state.rollout, (_restage(candidate, "refused", order, summary),))
    if not state.champion:
        return _first(state, candidate, order, cause_id)
    apart = misfit(_shape(state.versions[state.champion]), _shape(candidate))
    if apart is not None:
        return _crown(state, candidate, order, cause_id, sentences.incomparable(state.champion, apart))
    if not plan.steps:
        return _crown(state, candidate, order, cause_id, "the pipeline declares no rollout")
    return _begin(state, candidate, order, plan, cause_id)


def _first(state: State, candidate: records.VersionRecord, order: Order, cause_id: str) -> Change:
    summary = sentences.first(candidate)
    deployment = _revise(state, order, "first", summary)
    deployment.champion.CopyFrom(deployed(candidate))
    deployment.cause_id = cause_id
    version = _restage(candidate, "champion", order, summary)
    return Change(deployment, None, (version,), ((CHAMPION, version.version),))


def _begin(state: State, candidate: records.VersionRecord, order: Order, plan: Plan, cause_id: str) -> Change:
    step = plan.steps[0]
    summary = sentences.began(candidate, state.champion, step)
    deployment = _revise(state, order, "rollout", summary)
    deployment.challenger.CopyFrom(deployed(candidate))
    deployment.cause_id = cause_id
    _keep_comparable(deployment, state, lambda one: outdated(one, state.offered))
    changed = [_restage(candidate, step.kind, order, summary)]
    if state.challenger:
        changed.append(_retire(state, state.challenger, order, f"replaced by v{candidate.version} in the rollout"))
    rollout = _enter(deployment, plan, 0, order)
    return Change(deployment, rollout, tuple(changed), ((CHALLENGER, candidate.version),))


def advance(state: State, order: Order, evidence: Struct) -> Change:
    """Move the challenger to the next step of its rollout."""
    assert state.rollout is not None
    plan, index = state.rollout.plan, state.rollout.progress.step + 1
    step = plan.steps[index]
    challenger = state.versions[state.challenger]
    summary = sentences.advanced(challenger, state.champion, step, order.reason)
    deployment = _revise(state, order, "rollout", summary, evidence)
    changed = () if challenger.stage == step.kind else (_restage(challenger, step.kind, order, summary),)
    return Change(deployment, _enter(deployment, plan, index, order), changed)


def hold(state: State, order: Order, evidence: Struct) -> Change:
    """Say that the present step waits for labels."""
    assert state.rollout is not None
    deployment = _revise(state, order, "held", sentences.held(state.pipeline, state.challenger, order.reason), evidence)
    progress = replace(state.rollout.progress, held=True)
    return Change(deployment, replace(state.rollout, progress=progress))


def promote(state: State, order: Order, evidence: Struct) -> Change:
    """Make the challenger champion: its rollout is over."""
    assert state.deployment is not None
    challenger = state.versions[state.challenger]
    return _crown(state, challenger, order, state.deployment.cause_id, order.reason, evidence)


def take_back(state: State, order: Order, evidence: Struct | None = None) -> Change:
    """End the rollout with the challenger rolled back; the champion goes on answering."""
    challenger = state.versions[state.challenger]
    summary = sentences.taken_back(challenger, state.champion, order.reason)
    deployment = _revise(state, order, "rolled_back", summary, evidence)
    _end_rollout(deployment)
    return Change(deployment, None, (_restage(challenger, "rolled_back", order, summary),), ((CHALLENGER, 0),))


def promote_by_hand(state: State, version: int, order: Order) -> Change | None:
    """Make a version champion because an operator says so; None when it is champion already.

    Raises `NotAllowedError` where a gate refused the version, or the definition in force cannot compute it.
    """
    chosen = state.versions[version]
    if state.champion == version:
        return None
    _require_current(state, chosen)
    if chosen.stage == "refused":
        failed = ", ".join(gate.gate for gate in chosen.gates if not gate.passed)
        raise NotAllowedError(
            f"{state.pipeline} v{version} was refused by its gates ({failed}): train another, or change the gates"
        )
    return _crown(state, chosen, order, "", order.reason, by_hand=True)


def roll_back_by_hand(state: State, order: Order) -> Change:
    """Take the challenger back where a rollout is under way, else the champion, in favour of the one before.

    Raises `NotAllowedError` where there is nothing to go back to.
    """
    if state.challenger:
        return take_back(state, order)
    if not state.champion:
        raise NotAllowedError(f"{state.pipeline} has no champion to take back: promote a version by number")
    if not state.previous_champion:
        raise NotAllowedError(f"{state.pipeline} has no earlier champion to go back to: promote a version by number")
    old = state.versions[state.champion]
    chosen = state.versions[state.previous_champion]
    _require_current(state, chosen)
    summary = sentences.restored(chosen, old.version, order.reason)
    deployment = _revise(state, order, "rolled_back", summary)
    deployment.champion.CopyFrom(deployed(chosen))
    deployment.cause_id = ""
    _keep_comparable(deployment, state, lambda one: outdated(one, state.offered))
    changed = (
        _restage(old, "rolled_back", order, summary),
        _restage(chosen, "champion", order, summary),
    )
    return Change(deployment, None, changed, ((CHAMPION, chosen.version),))


def end(state: State, order: Order) -> Change:
    """End a pipeline's versions with the pipeline: nothing answers any more, and no rollout goes on."""
    using = [one for _, one in sorted(state.versions.items()) if one.stage in IN_USE]
    changed = tuple(_retire(state, one.version, order, "its pipeline was retired") for one in using)
    if state.deployment is None:
        return Change(None, None, changed)
    deployment = _revise(state, order, "retired", sentences.ended(state.pipeline, order.reason))
    _end_rollout(deployment)
    for name in ("champion", "baselines", "cause_id"):
        deployment.ClearField(name)
    aliases = [(alias, 0) for alias, held in ((CHAMPION, state.champion), (CHALLENGER, state.challenger)) if held]
    return Change(deployment, None, changed, tuple(aliases))


def set_baselines(state: State, versions: list[int], order: Order) -> Change | None:
    """Replace the versions that score beside the others and never answer; None when they are these already.

    Raises `NotAllowedError` where nothing is deployed, or the definition in force cannot compute one of them.
    """
    if state.deployment is None or not state.champion:
        raise NotAllowedError(f"{state.pipeline} has no champion: nothing scores, so nothing compares")
    for version in versions:
        _require_current(state, state.versions[version])
    wanted = [deployed(state.versions[version]) for version in versions]
    if list(state.deployment.baselines) == wanted:
        return None
    deployment = _revise(state, order, "manual", sentences.compared(state.pipeline, versions))
    del deployment.baselines[:]
    deployment.baselines.extend(wanted)
    return Change(deployment, state.rollout)


def deployed(version: records.VersionRecord) -> records.DeployedVersion:
    """Return what serving needs to load a version."""
    return records.DeployedVersion(version=version.version, bundle=version.bundle, manifest_hash=version.manifest_hash)


def _crown(
    state: State,
    chosen: records.VersionRecord,
    order: Order,
    cause_id: str,
    why: str,
    evidence: Struct | None = None,
    by_hand: bool = False,
) -> Change:
    summary = sentences.promoted(chosen, state.champion, why)
    deployment = _revise(state, order, "manual" if by_hand else "promoted", summary, evidence)
    deployment.champion.CopyFrom(deployed(chosen))
    deployment.cause_id = cause_id
    _end_rollout(deployment)
    _keep_comparable(deployment, state, lambda one: misfit(_shape(one), _shape(chosen)))
    others = sorted({state.champion, state.challenger} - {0, chosen.version})
    changed = [_restage(chosen, "champion", order, summary)]
    changed += [_retire(state, other, order, f"v{chosen.version} is champion") for other in others]
    aliases = [(CHAMPION, chosen.version)] + ([(CHALLENGER, 0)] if state.challenger else [])
    return Change(deployment, None, tuple(changed), tuple(aliases))


def _keep_comparable(
    deployment: records.DeploymentRecord, state: State, apart: Callable[[records.VersionRecord], str | None]
) -> None:
    """Leave out baselines that cannot be computed beside what is deployed; `apart` says why one cannot."""
    kept = [one for one in deployment.baselines if apart(state.versions[one.version]) is None]
    del deployment.baselines[:]
    deployment.baselines.extend(kept)


def outdated(version: records.VersionRecord, offered: Shape) -> str | None:
    """Return why a definition cannot compute a version; None where it can."""
    return misfit(_shape(version)._replace(columns={}), offered)


def _shape(version: records.VersionRecord) -> Shape:
    return Shape({column.name: column.category for column in version.features}, version.views, version.sources)


def _require_current(state: State, version: records.VersionRecord) -> None:
    if (why := outdated(version, state.offered)) is not None:
        raise NotAllowedError(f"{sentences.named(version)} {why}: train another, or apply the definition of then")


def _retire(state: State, version: int, order: Order, why: str) -> records.VersionRecord:
    return _restage(state.versions[version], "retired", order, sentences.retired(state.pipeline, version, why))


def _revise(
    state: State, order: Order, change: str, summary: str, evidence: Struct | None = None
) -> records.DeploymentRecord:
    deployment = records.DeploymentRecord(pipeline=state.pipeline)
    if state.deployment is not None:
        deployment.CopyFrom(state.deployment)
    deployment.revision += 1
    deployment.change = change
    deployment.actor = order.actor
    deployment.summary = summary
    deployment.ClearField("evidence")
    if evidence is not None:
        deployment.evidence.CopyFrom(evidence)
    deployment.decided_at.CopyFrom(to_timestamp(order.at_us))
    return deployment


def _enter(deployment: records.DeploymentRecord, plan: Plan, index: int, order: Order) -> Rollout:
    step = plan.steps[index]
    deployment.step_kind = step.kind
    deployment.step = index
    deployment.share = step.share
    deployment.step_began_at.CopyFrom(to_timestamp(order.at_us))
    return Rollout(plan, Progress(step=index, began_us=order.at_us, held=False), deployment.revision)


def _end_rollout(deployment: records.DeploymentRecord) -> None:
    for name in ("challenger", "step_kind", "step", "share", "step_began_at"):
        deployment.ClearField(name)


def _restage(version: records.VersionRecord, stage: str, order: Order, summary: str) -> records.VersionRecord:
    moved = records.VersionRecord()
    moved.CopyFrom(version)
    moved.revision += 1
    moved.stage = stage
    moved.actor = order.actor
    moved.summary = summary
    return moved
