"""The audit chain shows every gap and every edit."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_registry.audit import Act, Head, first_break, link

TEXT = st.text(max_size=20)
ACTS = st.lists(st.builds(Act, object=TEXT, action=TEXT, actor=TEXT, reason=TEXT), min_size=1, max_size=6)


def chain_of(acts: list[Act]) -> list[records.AuditRecord]:
    head, chain = Head(), []
    for at_us, act in enumerate(acts):
        chain.append(link(head, act, at_us))
        head = Head(chain[-1].sequence, chain[-1].hash)
    return chain


@given(ACTS)
def test_chain_survives_its_own_json(acts: list[Act]) -> None:
    chain = [from_json(to_json(record), records.AuditRecord()) for record in chain_of(acts)]
    assert first_break(chain) is None


def test_chain_covers_numbers_inside_before_and_after() -> None:
    after = records.VersionRecord(pipeline="p", metrics={"log_loss": 0.1 + 0.2, "tiny": 1e-9, "roc_auc": 1.0})
    record = link(Head(), Act("version/p/1", "champion", "me", "", after=after), 5)
    again = from_json(to_json(record), records.AuditRecord())
    assert first_break([again]) is None
    assert json.loads(to_json(again))["after"]["metrics"]["tiny"] == 1e-9


@given(ACTS, st.data())
def test_a_removed_record_shows(acts: list[Act], data: st.DataObject) -> None:
    chain = chain_of([*acts, Act("o", "a", "me", "")])
    gone = data.draw(st.integers(0, len(chain) - 2))
    assert first_break(chain[:gone] + chain[gone + 1 :]) == chain[gone + 1].sequence


@given(ACTS, st.data())
def test_an_edited_record_shows(acts: list[Act], data: st.DataObject) -> None:
    chain = chain_of(acts)
    edited = data.draw(st.sampled_from(chain))
    edited.actor += "!"
    assert first_break(chain) == edited.sequence


def test_a_record_that_was_written_anew_with_its_hash_shows_in_the_next_one() -> None:
    chain = chain_of([Act("o", str(number), "me", "") for number in range(6)])
    chain[2] = link(Head(2, chain[1].hash), Act("o", "2", "somebody else", ""), 2)
    assert first_break(chain[:3]) is None
    assert first_break(chain) == 4


@pytest.mark.parametrize("length", [0, 3])
def test_a_part_of_the_chain_is_checked_from_its_head(length: int) -> None:
    chain = chain_of([Act("o", str(number), "me", "") for number in range(6)])
    head = Head(chain[length - 1].sequence, chain[length - 1].hash) if length else Head()
    assert first_break(chain[length:], head) is None
