"""A share of the examples is fewer of them, and never none."""

import pytest
from tidemill_testkit.effort import FEWEST, SHARE_VARIABLE, examples


def test_all_examples_are_tried_unless_a_share_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARE_VARIABLE, raising=False)
    assert [examples(full) for full in (3, 70, 600)] == [3, 70, 600]
    monkeypatch.setenv(SHARE_VARIABLE, "0.3")
    assert [examples(full) for full in (3, 10, 70, 600)] == [3, FEWEST, 21, 180]
