"""The drift detector's cut beside river's ADWIN, which monitoring alone does not install."""

import numpy as np
import pytest
from river.drift import ADWIN
from tidemill_monitoring.adwin import CAPACITY, best_cut
from tidemill_monitoring.drift import delta_of

DELTA = delta_of(1, 90, 1)
SPREAD = 0.05


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_what_rivers_adwin_finds_is_found_no_later(moved: float) -> None:
    found = 0
    for seed in range(60):
        half = CAPACITY // 2
        before = np.random.default_rng(seed).normal(0.5, SPREAD, half)
        after = np.random.default_rng(seed + 1_000).normal(0.5 + moved, SPREAD, half)
        means = [max(SPREAD, mean) for mean in np.concatenate([before, after]).tolist()]
        # Every value is looked at, as here; its bound adds the term that blocks leave out, so it is never sharper.
        theirs = ADWIN(delta=DELTA, clock=1, min_window_length=5, grace_period=10)  # type: ignore[no-untyped-call]
        for count, mean in enumerate(means, 1):
            theirs.update(mean)  # type: ignore[no-untyped-call]
            if theirs.drift_detected:
                assert any(best_cut(means[:ours], DELTA, 0.0) for ours in range(1, count + 1)), f"seed {seed}"
                found += 1
                break
    assert (found > 50) == (moved > 0), f"river found {found} of 60"
