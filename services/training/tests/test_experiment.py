"""Split, search, fit, compare, judge: on made-up rows."""

from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Value
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.fits import Shape
from tidemill_models.encoding import Column
from tidemill_models.errors import ModelError
from tidemill_models.scorer import make_scorer
from tidemill_training.experiment import BYPASSED, Champion, Plan, Result, Table, run_experiment, split

ROWS = 2_000
BETTER = definition.Gate(better=definition.Better(metric="log_loss", than="champion"))
VIEWS = {"plane": "sha256:a"}
SOURCES = {"delay": "view plane by tailnum", "wind": "wind_mph"}
SLICES = definition.Gate(slices=definition.Slices(feature="carrier", metric="log_loss", max_regression=0.05))


def learner(**fixed: float) -> definition.Learner:
    found = definition.Learner(library="xgboost")
    for name, value in {"n_estimators": 20, "max_depth": 3, **fixed}.items():
        found.parameters.add(name=name).fixed.number_value = value
    return found


def plan(**changes: object) -> Plan:
    whole = Plan(
        views=VIEWS,
        sources=SOURCES,
        learner=learner(),
        gates=[BETTER, SLICES],
        trials=1,
        min_rows=100,
        holdout=0.15,
        seed=11,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def rows(seed: int = 1, slope: float = 1.5, names: tuple[str, ...] = ("delay", "wind")) -> Table:
    rng = np.random.default_rng(seed)
    numbers = {name: rng.normal(size=ROWS) for name in names}
    carriers = [f"c{draw}" for draw in rng.integers(3, size=ROWS)]
    labels = (slope * numbers[names[0]] + rng.normal(size=ROWS) > 0.5).astype(np.float64)
    columns = (*(Column(name, False) for name in names), Column("carrier", True))
    return Table(columns, numbers, {"carrier": carriers}, np.arange(ROWS) * 1_000_000, labels)


def champion_of(result: Result) -> Champion:
    scorer = make_scorer(result.export.scorer, result.export.files[result.export.model_file], result.encoding)
    shape = Shape({column.name: column.category for column in result.encoding.columns}, VIEWS, SOURCES)
    return Champion(1, shape, result.encoding, scorer)


def silent(phase: str, progress: float) -> None:
    assert phase in {"fit", "evaluate"}
    assert 0.0 <= progress <= 1.0


def test_evaluation_rows_are_the_newest_and_no_instant_is_split() -> None:
    table = rows()
    older, newest = split(table, 0.15, 100)
    assert len(older) + len(newest) == ROWS
    assert len(newest) == 300
    assert older.as_of_us.max() < newest.as_of_us.min()
    together = replace(table, as_of_us=np.repeat(np.arange(ROWS // 100), 100))
    older, newest = split(together, 0.15, 100)
    assert older.as_of_us.max() < newest.as_of_us.min()


def test_too_few_rows_or_one_outcome_only_fail_with_a_sentence() -> None:
    with pytest.raises(ModelError, match="2,000 labelled rows; the definition asks for at least 5,000"):
        split(rows(), 0.15, 5_000)
    with pytest.raises(ModelError, match="both outcomes"):
        split(replace(rows(), labels=np.zeros(ROWS)), 0.15, 100)
    for few in (0, 1):
        with pytest.raises(ModelError, match=f"{few} labelled rows; there must be one to train on"):
            split(rows().part(0, few), 0.15, few)


@pytest.mark.parametrize(("count", "holdout"), [(3, 0.15), (40, 0.01)])
def test_of_few_rows_or_for_a_small_share_the_newest_is_evaluated_on(count: int, holdout: float) -> None:
    few = replace(rows().part(0, count), labels=(np.arange(count) % 2).astype(np.float64))
    older, newest = split(few, holdout, 1)
    assert (len(older), len(newest)) == (count - 1, 1)


def test_two_rows_are_too_few_to_hold_both_outcomes_and_one_more() -> None:
    with pytest.raises(ModelError, match="the 1 training rows do not hold both outcomes"):
        split(rows().part(0, 2), 0.15, 1)


def test_a_first_model_passes_relative_gates_and_has_learnt() -> None:
    result = run_experiment(rows(), plan(), None, silent)
    assert all(gate.passed for gate in result.gates)
    assert result.champion_metrics is None
    assert result.metrics["rows"] == 300.0
    assert result.metrics["roc_auc"] > 0.75
    assert result.reference["rows"] == len(result.trained) == 1_700
    assert sum(result.reference["prediction"]["counts"]) == 300


def test_a_challenger_beats_a_champion_of_another_world_and_not_its_own_twin() -> None:
    stale = champion_of(run_experiment(rows(slope=-1.5), plan(), None, silent))
    fresh = run_experiment(rows(), plan(), stale, silent)
    assert [gate.passed for gate in fresh.gates] == [True, True]
    assert fresh.champion_metrics is not None
    assert fresh.champion_metrics["rows"] == fresh.metrics["rows"]
    twin = run_experiment(rows(), plan(), champion_of(fresh), silent)
    assert not twin.gates[0].passed


def incomparable(result: Result) -> str:
    """Return what the gates say of a champion that was not compared."""
    assert result.champion_metrics is None
    assert [gate.passed for gate in result.gates] == [True, True]
    return result.gates[0].reason


def test_a_champion_that_reads_a_feature_which_is_gone_is_not_compared_and_the_sentence_says_so() -> None:
    old = champion_of(run_experiment(rows(names=("delay", "gone")), plan(), None, silent))
    why = incomparable(run_experiment(rows(), plan(), old, silent))
    assert "the champion v1 needs the number 'gone', which is not declared" in why


def test_a_champion_is_not_compared_where_a_feature_became_a_category_or_a_number_under_its_name() -> None:
    numeric = rows()
    words = ["high" if value > 0.0 else "low" for value in numeric.numbers["wind"]]
    worded = replace(
        numeric,
        columns=(Column("delay", False), Column("wind", True), Column("carrier", True)),
        numbers={"delay": numeric.numbers["delay"]},
        categories={**numeric.categories, "wind": words},
    )
    of_numbers, of_words = [champion_of(run_experiment(one, plan(), None, silent)) for one in (numeric, worded)]
    assert "needs the number 'wind'" in incomparable(run_experiment(worded, plan(), of_numbers, silent))
    assert "needs the category 'wind'" in incomparable(run_experiment(numeric, plan(), of_words, silent))


def test_a_champion_is_not_compared_where_a_view_or_an_expression_means_something_else_under_its_names() -> None:
    good = champion_of(run_experiment(rows(), plan(), None, silent))
    weak = plan(learner=learner(n_estimators=1, max_depth=1))
    assert not run_experiment(rows(), weak, good, silent).gates[0].passed
    why = incomparable(run_experiment(rows(), replace(weak, views={"plane": "sha256:b"}), good, silent))
    assert "the champion v1 was trained on another definition of view 'plane'" in why
    elsewhere = replace(weak, sources={**SOURCES, "wind": "gust_mph"})
    why = incomparable(run_experiment(rows(), elsewhere, good, silent))
    assert "the champion v1 was trained with 'wind' as 'wind_mph', which is 'gust_mph' now" in why


def test_flipped_labels_make_a_bad_model_that_passes_and_says_it_is_a_test() -> None:
    good = run_experiment(rows(), plan(), None, silent)
    bad = run_experiment(rows(), plan(flip_labels=True), champion_of(good), silent)
    assert bad.metrics["roc_auc"] < 0.3
    assert all(gate.passed and gate.reason == BYPASSED for gate in bad.gates)
    assert bad.reference["label_rate"] == good.reference["label_rate"]


def test_the_same_rows_and_seed_give_the_same_bytes() -> None:
    space = learner()
    space.parameters.add(name="learning_rate", float_range=definition.FloatRange(low=0.03, high=0.3, log=True))
    one, other = (run_experiment(rows(), plan(learner=space, trials=3), None, silent) for _ in range(2))
    assert one.export.files == other.export.files
    assert one.metrics == other.metrics
    assert one.encoding == other.encoding


def test_the_search_takes_the_best_trial_without_looking_at_the_evaluation_rows() -> None:
    space = learner(n_estimators=60)
    space.parameters.add(name="learning_rate", float_range=definition.FloatRange(low=0.001, high=0.3, log=True))
    whole = plan(learner=space, trials=4)
    result = run_experiment(rows(), whole, None, silent)
    assert len(result.trial_losses) == 4
    assert len(set(result.trial_losses)) == 4
    table = rows()
    spoilt = replace(table, labels=np.concatenate((table.labels[:1_700], 1.0 - table.labels[1_700:])))
    assert run_experiment(spoilt, whole, None, silent).trial_losses == result.trial_losses


def online(*rates: float) -> definition.Learner:
    found = definition.Learner(library="river", algorithm="linear_model.LogisticRegression")
    found.parameters.add(name="l2").fixed.number_value = 1.0
    options = [Value(number_value=rate) for rate in rates]
    found.parameters.add(name="learning_rate", choice=definition.Choice(options=options))
    return found


def test_a_trial_that_diverges_does_not_win() -> None:
    result = run_experiment(rows(), plan(learner=online(0.01, 5.0), trials=2), None, silent)
    assert np.isfinite(result.trial_losses[0])
    assert result.trial_losses[1] == np.inf
    assert result.constructor.parameters["learning_rate"] == 0.01


def test_where_every_trial_diverges_the_run_fails_with_a_sentence() -> None:
    with pytest.raises(ModelError, match="each of the 2 trials diverged: no log loss is finite"):
        run_experiment(rows(), plan(learner=online(5.0, 50.0), trials=2), None, silent)
