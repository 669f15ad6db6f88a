"""Histograms against the reference: distance, noise, and alerts that do not repeat."""

import numpy as np
import pytest
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_monitoring.profiles import PSI_LIMIT, ProfileWatch, Reference, Sample, noise_bound, psi
from tidemill_monitoring.sampling import champion_of, sample_of

EDGES = [0.25, 0.5, 0.75]
PROFILE = {
    "features": {
        "speed": {"kind": "number", "edges": EDGES, "counts": [2500, 2500, 2500, 2500], "nulls": 0},
        "carrier": {"kind": "category", "counts": {"AA": 5000, "UA": 4000, "__other__": 0}, "nulls": 0},
    },
    "prediction": {"edges": EDGES, "counts": [2500, 2500, 2500, 2500]},
}


def sample(rng: np.random.Generator, rows: int, shift: float = 0.0, carriers: tuple[str, ...] = ("AA", "UA")) -> Sample:
    values = np.clip(rng.random(rows) + shift, 0, 1)
    names = [carriers[0] if rng.random() < 5 / 9 else carriers[-1] for _ in range(rows)]
    return Sample({"speed": values}, {"carrier": names}, rng.random(rows))


def watch_days(shifts: list[float], rows: int = 300) -> list[list[str]]:
    rng, reference, watch = np.random.default_rng(2), Reference(PROFILE), ProfileWatch(days=3)
    told = []
    for shift in shifts:
        watch.add_day(1, reference.count(sample(rng, rows, shift)))
        told.append(watch.judge(reference)[1])
    return told


def test_what_moved_is_told_once_and_again_only_after_it_had_come_back() -> None:
    told = watch_days([0.0] * 3 + [0.4] * 4 + [0.0] * 4 + [0.4] * 4)
    assert [(day, names) for day, names in enumerate(told) if names] == [
        (4, ["feature:speed"]),
        (12, ["feature:speed"]),
    ]


@pytest.mark.parametrize(("between", "told"), [(0.6, [1, 0, 0]), (0.4, [1, 0, 1])])
def test_a_signal_that_moved_has_come_back_only_once_it_is_well_below_the_limit(
    between: float, told: list[int]
) -> None:
    watch, found = ProfileWatch(days=1), list[int]()
    # Distances of 0.30, then 0.21 or 0.08, then 0.30.
    for shift in (0.7, between, 0.7):
        watch.add_day(1, {"prediction": [int(2500 * (1 + shift)), int(2500 * (1 - shift)), 2500, 2500, 0]})
        found.append(len(watch.judge(Reference(PROFILE))[1]))
    assert found == told


def test_a_distance_that_so_few_reference_rows_have_by_chance_is_no_move() -> None:
    few = Reference({"prediction": {"edges": EDGES, "counts": [15, 15, 15, 15]}})
    watch = ProfileWatch(days=1)
    watch.add_day(1, {"prediction": [255, 45, 150, 150, 0]})
    ((found,), fresh) = watch.judge(few)
    assert PSI_LIMIT < found.psi < found.noise
    assert (found.moved, fresh) == (False, [])


def test_equal_rows_are_never_told_however_few_they_are() -> None:
    assert watch_days([0.0] * 30, rows=200) == [[]] * 30


def test_fewer_rows_than_enough_are_not_judged() -> None:
    reference, watch = Reference(PROFILE), ProfileWatch(days=3)
    watch.add_day(1, reference.count(sample(np.random.default_rng(0), 100, 0.5)))
    assert watch.judge(reference) == ([], [])


def test_a_new_version_begins_anew() -> None:
    reference, watch = Reference(PROFILE), ProfileWatch(days=3)
    rng = np.random.default_rng(0)
    watch.add_day(1, reference.count(sample(rng, 600, 0.5)))
    assert "feature:speed" in watch.judge(reference)[1]
    watch.add_day(2, reference.count(sample(rng, 600, 0.5)))
    assert "feature:speed" in watch.judge(reference)[1], "told of the new one too"
    watch.add_day(3, reference.count(sample(rng, 600)))
    assert watch.judge(reference)[1] == []


def test_an_unseen_category_counts_as_other_and_an_empty_one_as_null() -> None:
    counted = Reference(PROFILE).count(Sample({}, {"carrier": ["AA", "ZZ", "", "UA", "__other__"]}, np.array([])))
    # Sorted names, then nulls.
    assert counted["feature:carrier"] == [1, 1, 2, 1]


def test_a_number_on_an_edge_falls_above_it_and_a_missing_one_is_null() -> None:
    counted = Reference(PROFILE).count(Sample({"speed": np.array([0.25, 0.2499, np.nan, 7.0])}, {}, np.array([])))
    assert counted["feature:speed"] == [1, 1, 0, 1, 1]


def test_a_snapshot_restores_the_same_judgement() -> None:
    reference, watch = Reference(PROFILE), ProfileWatch(days=3)
    rng = np.random.default_rng(0)
    for _ in range(3):
        watch.add_day(1, reference.count(sample(rng, 300, 0.4)))
    watch.judge(reference)
    again = ProfileWatch(days=3)
    again.restore(watch.snapshot())
    assert again.judge(reference) == watch.judge(reference)


@pytest.mark.parametrize("bins", [4, 10, 20])
def test_the_noise_bound_is_passed_by_about_one_in_a_thousand(bins: int) -> None:
    rng, passed = np.random.default_rng(0), 0
    for _ in range(4_000):
        live = np.bincount(rng.integers(0, bins, 1_000), minlength=bins)
        reference = np.bincount(rng.integers(0, bins, 5_000), minlength=bins)
        passed += psi(live.tolist(), reference.tolist()) > noise_bound(bins, 1_000, 5_000)
    assert passed <= 16


def test_a_sample_holds_only_rows_that_the_version_answered_as_champion() -> None:
    columns = [registry.FeatureColumn(name="carrier", category=True), registry.FeatureColumn(name="speed")]

    def served(version: int, role: "serving.Role.ValueType", numbers: int = 1) -> serving.PredictionRecord:
        return serving.PredictionRecord(
            features=serving.ServedFeatures(numbers=[0.5] * numbers, categories=["AA"]),
            scores=[serving.Score(model_version=version, probability=0.3, role=role)],
        )

    found = sample_of(
        [
            served(1, serving.ROLE_CHAMPION),
            served(2, serving.ROLE_CHAMPION),
            served(1, serving.ROLE_BASELINE),
            served(1, serving.ROLE_CHAMPION, numbers=2),
        ],
        columns,
        1,
    )
    assert found.numbers["speed"].tolist() == [0.5]
    assert list(found.categories["carrier"]) == ["AA"]
    assert found.predictions.tolist() == [0.3]
    nothing = sample_of([], columns, 1)
    assert nothing.numbers["speed"].tolist() == []


def test_the_version_compared_is_the_one_that_answered_last_as_champion() -> None:
    def asked(as_of_us: int, version: int, *roles: "serving.Role.ValueType") -> serving.PredictionRecord:
        scores = [serving.Score(model_version=version, role=role) for role in roles]
        return serving.PredictionRecord(as_of_us=as_of_us, model_version=version, scores=scores)

    challenged = asked(9, 3, serving.ROLE_CHALLENGER)
    assert champion_of([asked(7, 2, serving.ROLE_CHAMPION), asked(5, 1, serving.ROLE_CHAMPION), challenged]) == 2
    assert champion_of([asked(7, 2, serving.ROLE_CHAMPION), asked(8, 1)]) == 1, "without scores, the one that answered"
    assert champion_of([challenged]) == champion_of([]) == 0
