"""Verdicts: what opens a gate, what closes it, and what the sentence says."""

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_models.gates import Evidence, Verdict, verdicts

GOOD = {"rows": 1000.0, "log_loss": 0.40, "roc_auc": 0.70, "brier": 0.1}
BAD = {"rows": 1000.0, "log_loss": 0.45, "roc_auc": 0.65, "brier": 0.2}


def better(metric: str) -> definition.Gate:
    return definition.Gate(better=definition.Better(metric=metric, than="champion"))


def slices(limit: float) -> definition.Gate:
    return definition.Gate(slices=definition.Slices(feature="carrier", metric="log_loss", max_regression=limit))


def one(gate: definition.Gate, evidence: Evidence) -> Verdict:
    (verdict,) = verdicts([gate], evidence)
    return verdict


@pytest.mark.parametrize("metric", ["log_loss", "roc_auc", "brier"])
def test_better_opens_for_an_improvement_and_closes_for_a_tie_or_a_loss(metric: str) -> None:
    assert one(better(metric), Evidence(challenger=GOOD, champion=BAD)).passed
    assert not one(better(metric), Evidence(challenger=BAD, champion=GOOD)).passed
    assert not one(better(metric), Evidence(challenger=GOOD, champion=GOOD)).passed


def test_the_sentence_carries_both_figures_and_the_rows() -> None:
    verdict = one(better("log_loss"), Evidence(challenger=BAD, champion=GOOD))
    assert verdict.reason == "log_loss 0.4500 does not beat the champion's 0.4000 on the same 1,000 rows."


def test_relative_gates_pass_without_a_champion_and_absolute_ones_hold() -> None:
    evidence = Evidence(challenger=GOOD, challenger_slices={"carrier": {"AA": GOOD}})
    assert one(better("log_loss"), evidence).passed
    assert one(slices(0.0), evidence).passed
    floor = definition.Gate(at_least=definition.Bound(metric="roc_auc", value=0.9))
    assert not one(floor, evidence).passed


def test_bounds_include_their_limit() -> None:
    evidence = Evidence(challenger=GOOD)
    assert one(definition.Gate(at_least=definition.Bound(metric="roc_auc", value=0.70)), evidence).passed
    assert one(definition.Gate(at_most=definition.Bound(metric="log_loss", value=0.40)), evidence).passed
    assert not one(definition.Gate(at_most=definition.Bound(metric="log_loss", value=0.39)), evidence).passed


def test_a_metric_that_the_rows_do_not_define_closes_the_gate() -> None:
    evidence = Evidence(challenger={"rows": 3.0, "log_loss": 0.1}, champion=BAD)
    assert not one(better("roc_auc"), evidence).passed
    assert not one(definition.Gate(at_least=definition.Bound(metric="roc_auc", value=0.6)), evidence).passed


def test_the_worst_slice_decides_and_small_slices_are_left_out() -> None:
    small = {"rows": 5.0, "log_loss": 9.0}
    evidence = Evidence(
        challenger=GOOD,
        champion=BAD,
        challenger_slices={"carrier": {"AA": BAD, "UA": GOOD, "": small}},
        champion_slices={"carrier": {"AA": GOOD, "UA": BAD, "": GOOD}},
    )
    closed = one(slices(0.04), evidence)
    assert not closed.passed
    assert "'AA'" in closed.reason
    assert "+0.0500" in closed.reason
    assert one(slices(0.06), evidence).passed


@pytest.mark.parametrize(("limit", "passed"), [(0.25, True), (0.24, False)])
def test_slices_of_enough_rows_are_compared_where_both_define_the_metric(limit: float, passed: bool) -> None:
    gate = definition.Gate(slices=definition.Slices(feature="carrier", metric="roc_auc", max_regression=limit))
    ours = {"AA": {"rows": 200.0, "roc_auc": 0.5}, "UA": {"rows": 199.0, "roc_auc": 0.1}}
    theirs = {"AA": {"roc_auc": 0.75}, "UA": {"roc_auc": 0.9}, "DL": {"log_loss": 0.4}}
    ours["DL"] = ours["new"] = {"rows": 900.0, "roc_auc": 0.1}
    verdict = one(gate, Evidence(GOOD, {"carrier": ours}, BAD, {"carrier": theirs}))
    assert verdict.passed == passed
    assert "Worst of 1 carrier slices is 'AA': roc_auc +0.2500" in verdict.reason


def test_an_unknown_metric_or_feature_or_an_empty_gate_is_an_error_never_a_pass() -> None:
    with pytest.raises(ValueError, match="unknown metric 'accuracy'"):
        one(better("accuracy"), Evidence(challenger=GOOD))
    with pytest.raises(ValueError, match="no category feature"):
        one(slices(0.1), Evidence(challenger=GOOD, champion=BAD))
    with pytest.raises(ValueError, match="says nothing"):
        one(definition.Gate(), Evidence(challenger=GOOD))
