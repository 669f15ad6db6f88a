"""A pipeline's versions from the first one to a rollback: states and events in, records out."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from tidemill_contracts.canonical import to_json
from tidemill_contracts.fits import Shape
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_registry.evidence import Paired, UnsoundEvidenceError, read_evidence, speaks_of, weigh
from tidemill_registry.lifecycle import (
    Change,
    NotAllowedError,
    Order,
    State,
    admit,
    end,
    promote_by_hand,
    roll_back_by_hand,
    set_baselines,
)
from tidemill_registry.rollout import Plan, Step

HOUR_US = 3_600_000_000
PLAN = Plan(
    (
        Step("shadow", 0.0, 12 * HOUR_US, 200),
        Step("canary", 0.1, 12 * HOUR_US, 200),
        Step("canary", 0.5, 12 * HOUR_US, 200),
    ),
    0.05,
)
OPERATOR = Order("ann", 99 * HOUR_US, "looks wrong")


class Life:
    """Keeps the state of one pipeline as the database would."""

    def __init__(self) -> None:
        self.state = State("flights")
        self.champions: list[int] = []

    def take(self, change: Change | None) -> Change:
        assert change is not None
        versions = {**self.state.versions, **{version.version: version for version in change.versions}}
        self.champions += [number for alias, number in change.aliases if alias == "champion"]
        now = change.deployment.champion.version if change.deployment else 0
        earlier = [n for n in self.champions if n != now and versions[n].stage != "rolled_back"]
        previous = earlier[-1] if earlier else 0
        self.state = State("flights", versions, change.deployment, change.rollout, previous, self.state.offered)
        return change

    def register(
        self,
        *,
        passed: bool = True,
        plan: Plan = PLAN,
        at_us: int = 0,
        views: Mapping[str, str] | None = None,
        features: Mapping[str, bool] | None = None,
        sources: Mapping[str, str] | None = None,
        in_force: Mapping[str, str] | None = None,
    ) -> Change:
        number = len(self.state.versions) + 1
        gate = records.GateResult(gate="better log_loss", passed=passed, reason="0.51 against 0.50")
        candidate = records.VersionRecord(
            pipeline="flights",
            version=number,
            bundle=f"flights/{number}",
            run_id=f"run-{number}",
            gates=[gate],
            views=views,
            sources=sources,
            features=[records.FeatureColumn(name=name, category=kind) for name, kind in (features or {}).items()],
        )
        # Mostly a version is of the definition in force.
        offered = Shape({}, (views or {}) if in_force is None else in_force, sources or {})
        self.state = replace(self.state, offered=offered)
        return self.take(admit(self.state, candidate, Order("training", at_us, "run"), plan, f"cause-{number}"))

    def evidence(self, *, hours: float, pairs: int = 500, difference: float = -0.01, **other: int) -> Paired:
        assert self.state.deployment is not None
        assert self.state.rollout is not None
        figures = monitoring.PairedEvidence(
            deployment_revision=self.state.deployment.revision,
            champion_version=self.state.champion,
            challenger_version=self.state.challenger,
            step=self.state.rollout.progress.step,
            pairs=pairs,
            total_pairs=pairs,
            hours=12,
            difference=difference,
            standard_error=0.005,
        )
        for name, value in other.items():
            setattr(figures, name, value)
        return Paired("flights", figures, int(hours * HOUR_US))

    def stages(self) -> dict[int, str]:
        return {number: version.stage for number, version in self.state.versions.items()}


@pytest.fixture
def life() -> Life:
    return Life()


def test_first_version_that_passes_its_gates_answers_at_once(life: Life) -> None:
    change = life.register()
    assert change.deployment is not None
    assert (change.deployment.change, change.deployment.champion.version) == ("first", 1)
    assert change.deployment.cause_id == "cause-1"
    assert change.aliases == (("champion", 1),)
    assert life.stages() == {1: "champion"}


def test_a_failed_gate_refuses_the_version_and_touches_nothing_else(life: Life) -> None:
    life.register()
    before = life.state.deployment
    change = life.register(passed=False)
    assert change.deployment == before
    assert life.stages() == {1: "champion", 2: "refused"}
    assert "0.51 against 0.50" in life.state.versions[2].summary


def test_a_refused_first_version_leaves_nothing_deployed(life: Life) -> None:
    assert life.register(passed=False).deployment is None
    assert life.register().deployment.champion.version == 2  # type: ignore[union-attr]


def test_evidence_moves_a_challenger_through_every_step_to_champion(life: Life) -> None:
    life.register()
    life.register(at_us=100 * HOUR_US)
    seen = []
    for hours in (112, 124, 136):
        change = life.take(weigh(life.evidence(hours=hours), life.state))
        deployment = change.deployment
        assert deployment is not None
        assert deployment.decided_at == to_timestamp(hours * HOUR_US)
        assert deployment.step_began_at == to_timestamp(hours * HOUR_US if deployment.step_kind else 0)
        restaged = [version.version for version in change.versions]
        seen.append((deployment.change, deployment.step_kind, deployment.share, deployment.revision, restaged))
    assert seen == [
        ("rollout", "canary", 0.1, 3, [2]),
        ("rollout", "canary", 0.5, 4, []),
        ("promoted", "", 0.0, 5, [2, 1]),
    ]
    assert life.stages() == {1: "retired", 2: "champion"}
    assert life.state.rollout is None
    assert life.state.deployment.cause_id == "cause-2"  # type: ignore[union-attr]


def test_evidence_replayed_after_its_decision_changes_nothing(life: Life) -> None:
    life.register()
    life.register(at_us=100 * HOUR_US)
    old = life.evidence(hours=112)
    life.take(weigh(old, life.state))
    assert weigh(old, life.state) is None
    late = life.evidence(hours=124, deployment_revision=old.figures.deployment_revision)
    assert weigh(late, life.state) is None


@pytest.mark.parametrize(
    "other", [{"champion_version": 9}, {"challenger_version": 9}, {"step": 1}, {"deployment_revision": 9}]
)
def test_evidence_of_another_rollout_or_step_decides_nothing(life: Life, other: dict[str, int]) -> None:
    life.register()
    life.register()
    assert weigh(life.evidence(hours=12, **other), life.state) is None
    assert weigh(life.evidence(hours=12), life.state) is not None


def test_evidence_from_before_a_note_within_the_same_step_still_counts(life: Life) -> None:
    life.register()
    life.register(at_us=0)
    early = life.evidence(hours=12)
    life.take(set_baselines(life.state, [1], OPERATOR))
    assert life.state.deployment.step_began_at == to_timestamp(0)  # type: ignore[union-attr]
    assert speaks_of(early, life.state)


def test_a_step_without_labels_is_held_once_and_goes_on_when_they_come(life: Life) -> None:
    life.register()
    life.register()
    held = life.take(weigh(life.evidence(hours=36, pairs=3), life.state))
    assert held.deployment.change == "held"  # type: ignore[union-attr]
    assert weigh(life.evidence(hours=37, pairs=3), life.state) is None
    moved = life.take(weigh(life.evidence(hours=50), life.state))
    assert moved.deployment.step == 1  # type: ignore[union-attr]


def test_a_worse_challenger_is_rolled_back_and_the_champion_stays(life: Life) -> None:
    life.register()
    life.register()
    change = life.take(weigh(life.evidence(hours=2, pairs=60, difference=0.4), life.state))
    assert change.deployment is not None
    assert change.deployment.change == "rolled_back"
    assert not change.deployment.HasField("challenger")
    assert change.deployment.champion.version == 1
    assert life.stages() == {1: "champion", 2: "rolled_back"}
    assert change.deployment.evidence["pairs"] == 60


def test_a_newer_version_replaces_the_challenger_under_way(life: Life) -> None:
    life.register()
    life.register()
    life.register(at_us=5 * HOUR_US)
    assert life.stages() == {1: "champion", 2: "retired", 3: "shadow"}
    assert life.state.rollout is not None
    assert life.state.rollout.progress.began_us == 5 * HOUR_US


def test_without_a_declared_rollout_a_passing_version_is_champion_at_once(life: Life) -> None:
    life.register()
    change = life.register(plan=Plan((), 0.01))
    assert change.deployment.change == "promoted"  # type: ignore[union-attr]
    assert life.stages() == {1: "retired", 2: "champion"}


def test_operator_promotes_past_a_rollout(life: Life) -> None:
    life.register()
    life.register()
    life.take(weigh(life.evidence(hours=12), life.state))
    change = life.take(promote_by_hand(life.state, 2, OPERATOR))
    assert change.deployment.change == "manual"  # type: ignore[union-attr]
    assert not change.deployment.HasField("evidence"), "that of the step before"  # type: ignore[union-attr]
    assert life.stages() == {1: "retired", 2: "champion"}
    assert change.aliases == (("champion", 2), ("challenger", 0))
    assert promote_by_hand(life.state, 2, OPERATOR) is None


def test_operator_does_not_promote_what_a_gate_refused(life: Life) -> None:
    life.register()
    life.register(passed=False)
    with pytest.raises(NotAllowedError, match="better log_loss"):
        promote_by_hand(life.state, 2, OPERATOR)


def test_rollback_by_hand_goes_from_challenger_to_champions_before(life: Life) -> None:
    life.register()
    life.register(plan=Plan((), 0.01))
    life.register(plan=Plan((), 0.01))
    life.register()
    life.take(roll_back_by_hand(life.state, OPERATOR))
    assert life.stages() == {1: "retired", 2: "retired", 3: "champion", 4: "rolled_back"}
    life.take(roll_back_by_hand(life.state, OPERATOR))
    assert life.stages() == {1: "retired", 2: "champion", 3: "rolled_back", 4: "rolled_back"}
    life.take(roll_back_by_hand(life.state, OPERATOR))
    assert life.stages() == {1: "champion", 2: "rolled_back", 3: "rolled_back", 4: "rolled_back"}
    assert life.state.deployment.cause_id == ""  # type: ignore[union-attr]
    with pytest.raises(NotAllowedError, match="no earlier champion"):
        roll_back_by_hand(life.state, OPERATOR)


def test_baselines_score_beside_the_others_through_every_change(life: Life) -> None:
    life.register()
    change = life.take(set_baselines(life.state, [1], OPERATOR))
    assert [one.version for one in change.deployment.baselines] == [1]  # type: ignore[union-attr]
    assert set_baselines(life.state, [1], OPERATOR) is None
    life.register()
    life.take(promote_by_hand(life.state, 2, OPERATOR))
    assert [one.version for one in life.state.deployment.baselines] == [1]  # type: ignore[union-attr]


def test_baselines_that_the_definition_in_force_cannot_compute_go_with_the_next_change(life: Life) -> None:
    life.register(views={"plane": "p"})
    life.register(views={"plane": "p", "route": "r"})
    life.take(set_baselines(life.state, [1, 2], OPERATOR))
    change = life.register(views={"plane": "p"}, in_force={"plane": "p"})
    assert (change.deployment.change, change.deployment.champion.version) == ("rollout", 1)  # type: ignore[union-attr]
    assert [one.version for one in change.deployment.baselines] == [1]  # type: ignore[union-attr]


def test_evidence_knows_no_definition_and_keeps_what_can_be_computed_beside_the_new_champion(life: Life) -> None:
    life.register(views={"plane": "p"})
    life.take(set_baselines(life.state, [1], OPERATOR))
    life.register(views={"plane": "p"})
    life.state = replace(life.state, offered=State("flights").offered)
    for hours in (12, 24, 36):
        life.take(weigh(life.evidence(hours=hours), life.state))
    assert life.stages() == {1: "retired", 2: "champion"}
    assert [one.version for one in life.state.deployment.baselines] == [1]  # type: ignore[union-attr]


def test_a_rollback_to_a_champion_of_before_leaves_out_baselines_of_since(life: Life) -> None:
    life.register(views={"plane": "a"})
    life.register(views={"plane": "b"})
    life.take(set_baselines(life.state, [2], OPERATOR))
    assert not life.state.deployment.HasField("step_began_at"), "no rollout is under way"  # type: ignore[union-attr]
    life.state = replace(life.state, offered=Shape({}, {"plane": "a"}))
    life.take(roll_back_by_hand(life.state, OPERATOR))
    assert life.stages() == {1: "champion", 2: "rolled_back"}
    assert not life.state.deployment.baselines  # type: ignore[union-attr]


def test_baselines_need_a_champion() -> None:
    with pytest.raises(NotAllowedError, match="has no champion: nothing scores"):
        set_baselines(State("flights"), [], OPERATOR)


def test_a_pipeline_that_was_retired_and_came_back_has_nothing_to_take_back_or_to_compare(life: Life) -> None:
    life.register()
    life.register(passed=False)
    life.take(end(life.state, OPERATOR))
    assert life.stages() == {1: "retired", 2: "refused"}
    with pytest.raises(NotAllowedError, match="has no champion to take back"):
        roll_back_by_hand(life.state, OPERATOR)
    with pytest.raises(NotAllowedError, match="has no champion: nothing scores"):
        set_baselines(life.state, [1], OPERATOR)


def test_a_version_beside_which_the_champion_cannot_be_computed_takes_its_place_at_once(life: Life) -> None:
    life.register(views={"plane": "old"})
    life.register(views={"plane": "old"})
    life.take(set_baselines(life.state, [1, 2], OPERATOR))
    assert life.stages() == {1: "champion", 2: "shadow"}
    change = life.register(views={"plane": "new", "route": "r"})
    assert life.stages() == {1: "retired", 2: "retired", 3: "champion"}
    assert change.deployment is not None
    assert change.deployment.summary == (
        "flights v3 is champion in place of v1: v1 was trained on another definition of view 'plane', "
        "so that both cannot score side by side."
    )
    assert not change.deployment.baselines
    assert not change.deployment.HasField("challenger")
    # What only reads more than the champion goes through its rollout.
    life.register(views={"plane": "new", "route": "r", "other": "o"})
    assert life.stages()[4] == "shadow"


def test_a_feature_that_is_gone_or_of_another_kind_cannot_be_compared_either(life: Life) -> None:
    life.register(features={"wind": False, "carrier": True})
    life.register(features={"wind": True, "carrier": True})
    assert life.stages() == {1: "retired", 2: "champion"}
    life.register(features={"wind": True})
    assert life.stages()[3] == "champion"
    life.register(features={"wind": True, "rain": False})
    assert life.stages()[4] == "shadow"


def test_a_version_that_makes_a_feature_in_another_way_under_the_same_name_takes_its_place_at_once(life: Life) -> None:
    life.register(sources={"late": "hour > 17"})
    life.register(sources={"late": "hour > 18"})
    assert life.stages() == {1: "retired", 2: "champion"}
    with pytest.raises(NotAllowedError, match="v1 was trained with 'late' as 'hour > 17', which is 'hour > 18' now"):
        roll_back_by_hand(life.state, OPERATOR)
    # A version of the release before says nothing of it, and is compared.
    life.register()
    assert life.stages()[3] == "shadow"


def test_a_version_of_another_definition_than_the_one_in_force_never_answers(life: Life) -> None:
    life.register(views={"plane": "old"})
    late = life.register(views={"plane": "old"}, in_force={"plane": "new"})
    assert life.stages() == {1: "champion", 2: "refused"}
    assert late.versions[0].summary == (
        "flights v2 was trained on another definition of view 'plane': it is of a definition that is not in force any "
        "more; train another."
    )
    life.register(views={"plane": "new"})
    assert life.stages()[3] == "champion"
    ways: list[Callable[[], object]] = [
        lambda: promote_by_hand(life.state, 1, OPERATOR),
        lambda: roll_back_by_hand(life.state, OPERATOR),
        lambda: set_baselines(life.state, [1], OPERATOR),
    ]
    for go_back in ways:
        with pytest.raises(NotAllowedError, match="flights v1 was trained on another definition of view 'plane'"):
            go_back()


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"[1]",
        b"7",
        b"[" * 100_000,
        b'{"kind": 3}',
        b'{"kind": "rollout"}',
        b'{"kind": "rollout", "window_end": "2013-01-01T00:00:00Z", "paired": {"difference": "NaN"}}',
        b'{"kind": "rollout", "window_end": "2013-01-01T00:00:00Z", "paired": {"pairs": -1}}',
    ],
)
def test_unsound_evidence_is_named_not_weighed(value: bytes | None) -> None:
    with pytest.raises(UnsoundEvidenceError):
        read_evidence(value)


def test_window_metrics_are_not_evidence() -> None:
    assert read_evidence(to_json(monitoring.MetricRecord(kind="window"))) is None


def test_evidence_is_read_at_its_event_time() -> None:
    record = monitoring.MetricRecord(pipeline="flights", kind="rollout", window_end=to_timestamp(7))
    record.paired.pairs = 3
    paired = read_evidence(to_json(record))
    assert paired is not None
    assert (paired.pipeline, paired.at_us, paired.figures.pairs) == ("flights", 7, 3)
