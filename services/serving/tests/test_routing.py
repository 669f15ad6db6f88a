from uuid import uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_runtime.errors import Poison
from tidemill_serving.identity import PREDICTIONS, prediction_id
from tidemill_serving.routing import RoutingTable, Split, bucket, scorers_of, split_of


def deployment(step: str, share: float, challenger: int = 4) -> registry.DeploymentRecord:
    return registry.DeploymentRecord(
        pipeline="flight-delays",
        revision=7,
        champion=registry.DeployedVersion(version=3, manifest_hash="sha256:3"),
        challenger=registry.DeployedVersion(version=challenger, manifest_hash=f"sha256:{challenger}"),
        step_kind=step,
        share=share,
    )


# gRPC refuses text that is not UTF-8 before any of this sees it.
TEXT = st.text(st.characters(codec="utf-8"))
IDS = [prediction_id("flight-delays", f"{number}-EWR", 0) for number in range(20_000)]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_the_challenger_answers_its_share(share: float) -> None:
    split = split_of(deployment("canary", share))
    answered = sum(split.challenger_answers(one) for one in IDS) / len(IDS)
    assert abs(answered - share) < 0.012
    if share in (0.0, 1.0):
        assert answered == share


@given(TEXT, st.floats(0, 1), st.floats(0, 1))
def test_a_request_that_the_challenger_answered_stays_with_it_as_the_share_grows(
    one: str, first: float, second: float
) -> None:
    low, high = sorted((first, second))
    later = deployment("canary", high)
    later.step, later.revision = 2, 9
    if split_of(deployment("canary", low)).challenger_answers(one):
        assert split_of(later).challenger_answers(one)


@given(TEXT, st.binary(max_size=64))
def test_a_bucket_depends_on_nothing_but_id_and_salt(one: str, salt: bytes) -> None:
    assert 0.0 <= bucket(one, salt) < 1.0
    assert bucket(one, salt) == bucket(one, salt)


def test_two_rollouts_choose_different_requests() -> None:
    first, second = (split_of(deployment("canary", 0.5, challenger)) for challenger in (4, 5))
    both = sum(first.challenger_answers(one) and second.challenger_answers(one) for one in IDS) / len(IDS)
    assert abs(both - 0.25) < 0.02


def test_in_shadow_the_champion_answers_everything() -> None:
    assert split_of(deployment("shadow", 0.7)) == Split()


@pytest.mark.parametrize(("step", "share"), [("blue-green", 0.1), ("canary", 1.5), ("canary", float("nan"))])
def test_a_step_that_is_not_understood_is_refused(step: str, share: float) -> None:
    with pytest.raises(Poison):
        split_of(deployment(step, share))


def test_each_version_scores_once_and_the_champion_comes_first() -> None:
    record = deployment("shadow", 0.0)
    record.baselines.add(version=1)
    record.baselines.add(version=3)
    assert [(version.version, role) for version, role in scorers_of(record)] == [
        (3, records.ROLE_CHAMPION),
        (4, records.ROLE_CHALLENGER),
        (1, records.ROLE_BASELINE),
    ]


def test_a_table_is_replaced_and_never_edited() -> None:
    empty: RoutingTable[int] = RoutingTable()
    one = empty.with_entry("a", 1)
    two = one.with_entry("a", 2).with_entry("b", 3)
    assert (dict(empty.entries), dict(one.entries), dict(two.entries)) == ({}, {"a": 1}, {"a": 2, "b": 3})
    assert dict(two.without("a").entries) == {"b": 3}


def test_an_unknown_pipeline_and_one_without_a_model_are_told_apart() -> None:
    table: RoutingTable[int] = RoutingTable()
    for known, reason in ((True, Reason.NO_MODEL), (False, Reason.UNKNOWN_PIPELINE)):
        with pytest.raises(Poison) as caught:
            table.entry("flight-delays", known)
        assert caught.value.reason is reason


@given(TEXT, TEXT, st.integers(0, 2**50))
def test_a_prediction_id_is_a_name_not_a_number(pipeline: str, key: str, as_of_us: int) -> None:
    assert prediction_id(pipeline, key, as_of_us) == str(uuid5(PREDICTIONS, f"{pipeline}\x1f{key}\x1f{as_of_us}"))
    assert prediction_id(pipeline, key, as_of_us) == prediction_id(pipeline, key, as_of_us)
    assert prediction_id(pipeline, key, as_of_us) != prediction_id(pipeline, key, as_of_us + 1)
