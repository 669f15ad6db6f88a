"""What the registry says, however often its relay says it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_serving.desired import Registered

MINUTE_US = 60_000_000
# A revision, and the registry's wall clock when it was written (µs).
Told = tuple[int, int]


def define(state: Registered, told: Told, *, retired: bool = False) -> Registered:
    revision, at_us = told
    record = definition.DefinitionRecord(
        kind="pipeline", name="p", revision=revision, applied_at=to_timestamp(at_us), retired=retired
    )
    return state.with_definition(to_json(record))


def deploy(state: Registered, told: Told, *, retired: bool = False) -> Registered:
    revision, at_us = told
    record = registry.DeploymentRecord(pipeline="p", revision=revision, emitted_at=to_timestamp(at_us))
    if retired:
        record.change = "retired"
    else:
        record.champion.version = revision
    return state.with_deployment(b"p", to_json(record))


def hear(state: Registered, told: Told) -> Registered:
    return deploy(define(state, told), told)


def wanted(state: Registered) -> Told:
    one = state.wanted()["p"]
    return one.definition.revision, one.deployment.revision


@given(st.integers(1, 8), st.data())
def test_what_is_sent_again_changes_nothing(count: int, data: st.DataObject) -> None:
    sent = [(revision, revision * MINUTE_US) for revision in range(1, count + 1)]
    state = Registered()
    for told in sent:
        state = hear(state, told)
    for told in data.draw(st.lists(st.sampled_from(sent))):
        state = hear(state, told)
        assert wanted(state) == (count, count)


def test_what_is_sent_again_does_not_bring_back_a_retired_pipeline() -> None:
    first, end, again = ((revision, revision * MINUTE_US) for revision in (1, 2, 3))
    state = deploy(define(hear(Registered(), first), end, retired=True), end, retired=True)
    assert not hear(state, first).wanted()
    # Applied again, it has no model until one is deployed.
    state = define(state, again)
    assert not deploy(state, first).wanted()
    assert wanted(deploy(state, again)) == (3, 3)


def test_a_registry_whose_database_was_made_anew_is_followed() -> None:
    state = hear(Registered(), (9, 9 * MINUTE_US))
    assert wanted(hear(state, (1, 10 * MINUTE_US))) == (1, 1)


@pytest.mark.parametrize("at_us", [0, 5 * MINUTE_US])
def test_the_next_revision_counts_even_where_the_clock_went_back(at_us: int) -> None:
    state = hear(Registered(), (9, 9 * MINUTE_US))
    assert wanted(hear(state, (10, at_us))) == (10, 10)
