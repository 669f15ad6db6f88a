"""The loss watch: what it sees, what it ignores, and when it may look again."""

from math import log
from statistics import variance

import numpy as np
import pytest
from tidemill_monitoring.adwin import CAPACITY, best_cut
from tidemill_monitoring.clock import DAY_US
from tidemill_monitoring.drift import LOSS_BOUND, MIN_ROWS, DriftWatch, Rows, Verdict, delta_of

DELTA = delta_of(1, 90, 1)
LIMIT = 0.05


def p_of(loss: float) -> float:
    """Return the probability of a positive row that costs this loss."""
    return float(np.exp(-loss))


def day(watch: DriftWatch, number: int, loss: float, version: int = 1, rows: int = 100) -> Verdict:
    """Live one day on which every answer costs the same."""
    start_us = number * DAY_US
    watch.observe(
        Rows(
            np.arange(start_us, start_us + rows),
            np.full(rows, version),
            np.ones(rows),
            np.full(rows, p_of(loss)),
        )
    )
    return watch.close_block(start_us + DAY_US, DELTA, LIMIT)


def noisy(seed: int, days: int, mean: float, spread: float = 0.13) -> list[float]:
    """Return daily losses that scatter as the flights' do."""
    rng = np.random.default_rng(seed)
    return [max(0.05, value) for value in rng.normal(mean, spread, days)]


def alarms(losses: list[float]) -> list[tuple[int, int]]:
    """Return (day of the alarm, day of the estimated onset) of every alarm; each is followed by a new version."""
    watch, version, found = DriftWatch(), 1, []
    for number, loss in enumerate(losses):
        verdict = day(watch, number, loss, version)
        if verdict.drifted:
            found.append((number, verdict.onset_us // DAY_US))
            watch.disarm(f"incident-{number}")
            version += 1
    return found


def test_a_rise_is_found_once_and_dated() -> None:
    found = alarms(noisy(3, 40, 0.45) + noisy(4, 30, 0.65))
    assert len(found) == 1
    detected, onset = found[0]
    assert 44 <= detected <= 55
    assert abs(onset - 40) <= 3


def test_golden_alarms_of_seeded_years() -> None:
    years = {seed: alarms(noisy(seed, 120, 0.45) + noisy(seed + 100, 120, 0.6)) for seed in range(4)}
    # The first of year 0 is a false one.
    assert years == {0: [(48, 41), (126, 116)], 1: [(126, 122)], 2: [(122, 120)], 3: [(145, 133)]}


def test_days_without_a_change_stay_far_below_the_budget() -> None:
    count = sum(len(alarms(noisy(seed, 360, 0.47))) for seed in range(40))
    # 40 years of 360 days at one alarm per 90 days would be 160.
    assert count <= 40


@pytest.mark.parametrize("days", [1, 2])
def test_a_storm_of_a_day_or_two_is_no_change_while_days_scatter_within_the_limit(days: int) -> None:
    found = [alarms(noisy(seed, 64, 0.4, 0.02) + [1.4] * days + noisy(seed + 100, 8, 0.4, 0.02)) for seed in range(20)]
    assert found == [[]] * 20


def test_a_fall_of_a_day_or_two_moves_no_reference() -> None:
    losses = [*noisy(1, 40, 0.6, 0.02), 0.1, 0.1, *noisy(2, 10, 0.6, 0.02)]
    assert alarms(losses) == []
    watch = DriftWatch()
    blocks = [day(watch, number, loss).blocks for number, loss in enumerate(losses)]
    assert blocks == list(range(1, 53))


def test_a_move_within_the_practical_limit_alarms_nobody() -> None:
    assert alarms([0.40 + 0.001 * (n % 2) for n in range(30)] + [0.44 + 0.001 * (n % 2) for n in range(30)]) == []


def test_an_improvement_moves_the_reference_down_and_the_way_back_up_is_a_rise() -> None:
    rng = np.random.default_rng(5)
    losses = [float(v) for v in np.concatenate([np.full(20, 0.6), np.full(20, 0.4), np.full(12, 0.6)])]
    losses = [value + float(noise) for value, noise in zip(losses, rng.normal(0, 0.02, 52), strict=True)]
    found = alarms(losses)
    assert len(found) == 1
    assert abs(found[0][1] - 40) <= 1


def test_no_second_alarm_before_the_first_label_of_a_new_version() -> None:
    watch = DriftWatch()
    losses = noisy(3, 40, 0.45) + noisy(4, 60, 0.75)
    raised = 0
    for number, loss in enumerate(losses):
        if day(watch, number, loss).drifted:
            raised += 1
            watch.disarm("incident")
    assert raised == 1
    rows = Rows(np.array([200 * DAY_US]), np.array([2]), np.ones(1), np.full(1, 0.5))
    assert watch.observe(rows) == "incident"
    assert watch.observe(rows) == ""
    assert not watch.blocks


def test_labels_of_the_old_version_do_not_count_after_a_new_one_took_over() -> None:
    watch = DriftWatch()
    day(watch, 0, 0.5)
    watch.disarm("incident")
    watch.observe(Rows(np.array([DAY_US]), np.array([1]), np.ones(1), np.full(1, 0.5)))
    mixed = Rows(np.array([DAY_US + 5, DAY_US + 1, DAY_US + 6]), np.array([2, 1, 2]), np.ones(3), np.full(3, 0.5))
    watch.observe(mixed)
    assert watch.block_rows == 2
    # The version is that of the newest answer, so that the next incident is about it.
    watch.observe(Rows(np.array([DAY_US + 2]), np.array([1]), np.ones(1), np.full(1, 0.5)))
    assert watch.version == 2


def test_a_version_that_was_replaced_without_an_incident_hands_its_days_on() -> None:
    watch = DriftWatch()
    for number in range(10):
        day(watch, number, 0.5, version=1)
    assert day(watch, 10, 0.5, version=2).blocks == 11


def test_a_thin_day_is_carried_into_the_next() -> None:
    watch = DriftWatch()
    assert day(watch, 0, 0.5, rows=MIN_ROWS - 1).blocks == 0
    assert day(watch, 1, 0.5, rows=1).blocks == 1
    assert watch.blocks[0][:2] == (0, MIN_ROWS)


def test_memory_is_bounded() -> None:
    watch = DriftWatch()
    for number in range(3 * CAPACITY):
        day(watch, number, 0.5)
    assert len(watch.blocks) == CAPACITY


@pytest.mark.parametrize("rises", [True, False])
@pytest.mark.parametrize(
    ("last", "moved"),
    [
        ([1.5, 1.5, 0.5, 1.5, 1.5], True),
        # Two of the last five are exceptions; then the mean of them lies within the limit.
        ([1.5, 0.9, 1.5, 0.9, 1.5], False),
        ([1.01, 1.01, 0.9, 1.01, 1.01], False),
    ],
)
def test_the_mean_and_all_but_one_of_the_last_days_move_beyond_the_limit_up_or_down(
    last: list[float], moved: bool, rises: bool
) -> None:
    means = [0.0] * 30 + [mean if rises else -mean for mean in last]
    assert (best_cut(means, DELTA, 1.0) is not None) == moved


def test_five_days_on_each_side_are_the_fewest_and_their_scatter_decides() -> None:
    means = [0.4] * 5 + [0.9] * 5
    assert best_cut(means[1:], 0.2, LIMIT) is best_cut(means[:-1], 0.2, LIMIT) is None
    cut = best_cut(means, 0.2, LIMIT)
    assert cut is not None
    assert cut.epsilon == pytest.approx((2 / 2.5 * variance(means) * log(2 * log(10) / 0.2)) ** 0.5)
    assert cut.ratio == pytest.approx(0.5 / cut.epsilon)


def test_one_sure_and_wrong_answer_does_not_outweigh_a_day() -> None:
    watch = DriftWatch()
    watch.observe(Rows(np.arange(100), np.ones(100, int), np.ones(100), np.array([p_of(0.5)] * 99 + [0.0])))
    assert watch.close_block(DAY_US, DELTA, LIMIT).mean == pytest.approx((99 * 0.5 + LOSS_BOUND) / 100)
    assert day(watch, 1, 0.3).mean == pytest.approx(0.3)


@pytest.mark.parametrize("at", [1, 17, 44, 60])
def test_a_watch_restored_from_its_snapshot_raises_the_same_alarms(at: int) -> None:
    losses = noisy(3, 40, 0.45) + noisy(4, 30, 0.65)
    watch, again = DriftWatch(), None
    for number, loss in enumerate(losses):
        if number == at:
            again = DriftWatch.restore(watch.snapshot())
        verdict = day(watch, number, loss)
        if again is not None:
            assert day(again, number, loss) == verdict
        if verdict.drifted:
            watch.disarm("x")
            if again is not None:
                again.disarm("x")
    assert again is not None
    assert again.snapshot() == watch.snapshot()


def test_the_clearest_split_is_the_one_reported() -> None:
    cut = best_cut([0.4] * 20 + [0.41, 0.39] * 5 + [0.9] * 8, DELTA, LIMIT)
    assert cut is not None
    assert cut.before_blocks == 30
    assert cut.after == pytest.approx(0.9)


def test_a_budget_twice_as_large_gives_twice_the_delta() -> None:
    assert delta_of(2, 90, 1) == pytest.approx(2 * DELTA)
    assert delta_of(1, 180, 1) == pytest.approx(DELTA / 2)
    # However much it allows, ADWIN's logarithm stays positive.
    assert delta_of(1_000, 1, 1) == 0.5
