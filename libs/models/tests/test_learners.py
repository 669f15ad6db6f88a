"""Fitted models: the served form answers like the native one, and the same rows give the same bytes."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_models.encoding import Column, Encoding, Floats, Matrix, learn_encoding
from tidemill_models.errors import BundleRefusedError, ModelError, NotExportableError
from tidemill_models.evaluation import log_loss
from tidemill_models.learners.interface import PARITY_LIMIT, build, checked_parity
from tidemill_models.learners.spaces import trials
from tidemill_models.manifest import Constructor
from tidemill_models.scorer import make_scorer

CONSTRUCTORS = {
    "xgboost": Constructor("xgboost", "", {"n_estimators": 30, "max_depth": 4.0, "learning_rate": 0.1}),
    "river": Constructor("river", "linear_model.LogisticRegression", {"l2": 0.001}),
}


@dataclass(frozen=True)
class Rows:
    encoding: Encoding
    x: Matrix
    y: Floats


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(20131104)
    n = 3000
    numbers = {f"f{place}": rng.normal(size=n) * 10.0**place for place in range(4)}
    numbers["f1"][rng.random(n) < 0.2] = np.nan
    numbers["constant"] = np.full(n, 3.0)
    numbers["absent"] = np.full(n, np.nan)
    carriers = [None if draw > 12 else f"c{draw}" for draw in rng.integers(15, size=n)]
    y = (numbers["f0"] + rng.normal(size=n) > 0.7).astype(np.float64)
    columns = (*(Column(name, False) for name in numbers), Column("carrier", True))
    encoding = learn_encoding(columns, {"carrier": carriers}, y)
    return Rows(encoding, encoding.encode(numbers, {"carrier": carriers}), y)


@pytest.mark.parametrize("library", CONSTRUCTORS)
def test_the_served_form_answers_like_the_native_model_and_has_learnt(library: str, rows: Rows) -> None:
    learner = build(CONSTRUCTORS[library], rows.encoding, seed=1).fit(rows.x, rows.y)
    export = learner.export(rows.x)
    served = make_scorer(export.scorer, export.files[export.model_file], rows.encoding).predict_proba(rows.x)
    assert np.abs(served - learner.predict_proba(rows.x)).max() == export.parity <= PARITY_LIMIT
    assert log_loss(rows.y, served) < log_loss(rows.y, np.full(len(rows.y), rows.y.mean())) - 0.1


@pytest.mark.parametrize("library", CONSTRUCTORS)
def test_a_row_answers_alike_in_any_batch(library: str, rows: Rows) -> None:
    export = build(CONSTRUCTORS[library], rows.encoding, seed=1).fit(rows.x, rows.y).export(rows.x)
    scorer = make_scorer(export.scorer, export.files[export.model_file], rows.encoding)
    whole = scorer.predict_proba(rows.x[:100])
    for size in (1, 7, 38):
        parts = [scorer.predict_proba(rows.x[start : start + size]) for start in range(0, 100, size)]
        np.testing.assert_array_equal(np.concatenate(parts)[:100], whole)
    assert scorer.predict_proba(rows.x[:0]).shape == (0,)


@pytest.mark.parametrize("library", CONSTRUCTORS)
def test_the_same_rows_and_seed_give_the_same_bytes(library: str, rows: Rows) -> None:
    first, second = (build(CONSTRUCTORS[library], rows.encoding, seed=5).fit(rows.x, rows.y) for _ in range(2))
    assert first.export(rows.x).files == second.export(rows.x).files


def test_threads_that_share_and_sample_the_rows_give_the_same_bytes_every_time(rows: Rows) -> None:
    constructor = Constructor("xgboost", "", {"n_estimators": 40, "subsample": 0.6, "colsample_bytree": 0.7})
    fitted = [build(constructor, rows.encoding, seed=5).fit(rows.x, rows.y) for _ in range(6)]
    assert len({one.export(rows.x).files["model.onnx"] for one in fitted}) == 1


def test_a_served_form_that_differs_is_not_exported() -> None:
    with pytest.raises(NotExportableError, match="not shipped"):
        checked_parity(np.array([0.5]), np.array([0.5 + 2 * PARITY_LIMIT]))
    with pytest.raises(NotExportableError):
        checked_parity(np.array([0.5]), np.array([np.nan]))


@pytest.mark.parametrize(
    "constructor",
    [
        Constructor("lightgbm", "", {}),
        Constructor("xgboost", "XGBRanker", {}),
        Constructor("xgboost", "", {"nthread": 8}),
        Constructor("xgboost", "", {"max_depth": 2.5}),
        Constructor("xgboost", "", {"max_depth": "deep"}),
        Constructor("xgboost", "", {"n_estimators": 10**9}),
        Constructor("xgboost", "", {"max_depth": -3}),
        Constructor("xgboost", "", {"subsample": 7.0}),
        Constructor("xgboost", "", {"max_bin": 1}),
        Constructor("river", "linear_model.LogisticRegression", {"l1": 0.1, "l2": 0.1}),
        Constructor("river", "tree.HoeffdingTreeClassifier", {}),
        Constructor("river", "linear_model.LogisticRegression", {"optimizer": 1.0}),
    ],
)
def test_an_unknown_library_class_parameter_or_value_is_refused(constructor: Constructor, rows: Rows) -> None:
    with pytest.raises(ModelError):
        build(constructor, rows.encoding, seed=1).fit(rows.x, rows.y)


def test_trees_that_found_nothing_to_split_are_served_too(rows: Rows) -> None:
    learner = build(Constructor("xgboost", "", {"gamma": 1e9, "n_estimators": 3}), rows.encoding, seed=1)
    export = learner.fit(rows.x, rows.y).export(rows.x)
    served = make_scorer(export.scorer, export.files[export.model_file], rows.encoding).predict_proba(rows.x)
    assert np.ptp(served) == 0.0
    assert served[0] == pytest.approx(rows.y.mean(), abs=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "linear", "pickle"])
def test_bytes_that_are_no_model_are_refused(kind: str, rows: Rows) -> None:
    with pytest.raises(BundleRefusedError):
        make_scorer(kind, b"not a model", rows.encoding)


def test_a_model_of_another_width_is_refused(rows: Rows) -> None:
    export = build(CONSTRUCTORS["xgboost"], rows.encoding, seed=1).fit(rows.x, rows.y).export(rows.x)
    narrow = Encoding(rows.encoding.columns[:2], {})
    with pytest.raises(BundleRefusedError, match="expected x"):
        make_scorer("onnx", export.files[export.model_file], narrow)


def test_serving_loads_no_training_library() -> None:
    heavy = {"xgboost", "river", "sklearn", "pyarrow", "pandas", "scipy", "onnxmltools"}
    code = "import sys, tidemill_models.scorer, tidemill_models.store; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)


def space() -> list[definition.Parameter]:
    fixed = definition.Parameter(name="n_estimators")
    fixed.fixed.number_value = 100
    choice = definition.Parameter(name="gamma")
    choice.choice.options.add().number_value = 0.5
    choice.choice.options.add().number_value = 1.0
    return [
        fixed,
        choice,
        definition.Parameter(name="max_depth", int_range=definition.IntRange(low=3, high=8)),
        definition.Parameter(name="learning_rate", float_range=definition.FloatRange(low=0.03, high=0.2, log=True)),
    ]


def test_the_first_trial_is_the_centre_of_the_space_and_the_others_lie_within_it() -> None:
    found = list(trials(space(), 50, np.random.default_rng(3)))
    assert found[0] == {
        "n_estimators": 100,
        "gamma": 0.5,
        "max_depth": 5,
        "learning_rate": pytest.approx(0.0775, abs=1e-4),
    }
    assert len({repr(point) for point in found}) == len(found) == 50
    assert {point["max_depth"] for point in found} == {3, 4, 5, 6, 7, 8}
    assert all(0.03 <= point["learning_rate"] <= 0.2 for point in found)


def test_trials_are_the_same_for_the_same_seed_and_end_with_a_small_space() -> None:
    assert list(trials(space(), 9, np.random.default_rng(3))) == list(trials(space(), 9, np.random.default_rng(3)))
    assert list(trials(space()[:1], 9, np.random.default_rng(3))) == [{"n_estimators": 100}]
    assert len(list(trials(space()[:2], 9, np.random.default_rng(3)))) == 2
