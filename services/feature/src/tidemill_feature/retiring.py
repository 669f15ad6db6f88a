"""When a view, an old version or a build of it, is no longer folded: pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tidemill_contracts.topics import events_topic
from tidemill_features.layout import Checkpoint, build_id, shard_prefix, view_id
from tidemill_features.plan import ViewPlan

from tidemill_feature.registered import Definitions

# Workers that have not read the book yet write shards of what is dropped for a moment longer.
SETTLE_US = 5_000_000


@dataclass
class Changes:
    """What to write into the book: fields to set, to set where there is none, and to delete."""

    set: dict[str, bytes | int] = field(default_factory=dict)
    first: dict[str, bytes | int] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.set or self.first or self.delete)


def unsettled(definitions: Definitions) -> set[str]:
    """Return the streams of which an old version or build may end once checkpoints tell that the newest answers."""
    floors = definitions.book.floors
    return {
        plan.stream
        for versions in definitions.versions.values()
        for plan in versions
        if plan is not versions[-1] or plan.build != floors.get(name_of(plan), 0)
    }


def retire(
    definitions: Definitions,
    points: Mapping[str, Sequence[Checkpoint]],
    in_use: frozenset[str],
    now_us: int,
    grace_us: int,
    project: str,
) -> Changes:
    """Return what follows from how far the new ones have come.

    `points`: by topic, the checkpoints that there are, of streams that are `unsettled`. `in_use`: hashes of views that
    a live model version reads.
    """
    changes = Changes()
    for versions in definitions.versions.values():
        newest = versions[-1]
        held = points.get(events_topic(newest.stream), ())
        answers = bool(held) and all(build_id(newest.hash, newest.build) in point.readable for point in held)
        for plan in versions:
            _drop_old_builds(definitions, plan, held, changes, now_us, project)
        if name_of(newest) in definitions.book.retired:
            changes.delete.append(f"r:{name_of(newest)}")
        for plan in versions[:-1] if answers else ():
            name, since_us = name_of(plan), definitions.book.retired.get(name_of(plan))
            if since_us is None:
                changes.first[f"r:{name}"] = now_us
            elif plan.hash not in in_use and now_us - since_us >= grace_us:
                _drop(name, plan.hash, plan.build, changes, now_us, project)
    for name, view_hash in definitions.ended().items():
        # The registry refuses to retire what is in use; a version of which it hears later is waited for all the same.
        if view_hash not in in_use:
            _drop(name, view_hash, definitions.book.builds.get(name, 0), changes, now_us, project)
    return changes


def _drop(name: str, view_hash: str, build: int, changes: Changes, now_us: int, project: str) -> None:
    """Forget a version with all its builds; should it come back, its next build lies beside the shards that expire."""
    changes.delete += [f"d:{name}", f"r:{name}"]
    changes.set |= {f"b:{name}": build + 1, f"f:{name}": build + 1}
    changes.set |= expiring([view_hash], range(build + 1), now_us, project)


def _drop_old_builds(
    definitions: Definitions, plan: ViewPlan, held: Sequence[Checkpoint], changes: Changes, now_us: int, project: str
) -> None:
    """Fold the builds before `plan` no more once it is what is read."""
    floor = definitions.book.floors.get(name_of(plan), 0)
    if plan.build == floor or not held:
        return
    if all(build_id(plan.hash, plan.build) in point.readable for point in held):
        changes.set[f"f:{name_of(plan)}"] = plan.build
        changes.set |= expiring([plan.hash], range(floor, plan.build), now_us, project)


def expiring(hashes: Iterable[str], builds: Iterable[int], now_us: int, project: str) -> dict[str, int]:
    """Return the fields that name the shards of some builds of views, given by hash, as to be expired."""
    numbers = list(builds)
    return {
        f"x:{shard_prefix(project, view_hash, build).decode()}": now_us + SETTLE_US
        for view_hash in hashes
        for build in numbers
    }


def name_of(plan: ViewPlan) -> str:
    """Return what the book calls a view by."""
    return view_id(plan.hash).hex()
