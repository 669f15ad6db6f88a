"""How near an engine must come to brute force: to the bit, but for what is stated here."""

import math

from tidemill_testkit.brute_force import Answer, Wanted


def agree(wanted: Wanted, got: Answer, want: Answer) -> bool:
    """Say whether a value is what brute force says: to the bit but for what is stated here."""
    if got.coarse != want.coarse:
        return False
    if wanted.function in ("variance", "std", "skew"):
        return _moments_agree(wanted, got, want)
    if got.status != want.status:
        return False
    if wanted.function == "quantile" and want.value is not None:
        return bool(abs(got.value - want.value) <= 0.0100001 * abs(want.value))
    if wanted.function in ("decayed_sum", "ewma") and want.exact is not None:
        return math.isclose(got.value, float(want.exact), rel_tol=1e-9, abs_tol=1e-14 * (1.0 + want.scale))
    if want.exact is not None and isinstance(want.value, float):
        close = math.isclose(got.value, float(want.exact), rel_tol=1e-9, abs_tol=64.0)
        return bool(got.value == want.value) and close
    return bool(got.value == want.value)


def _moments_agree(wanted: Wanted, got: Answer, want: Answer) -> bool:
    """Moments are as exact as values of that size can be; where nothing but rounding is left, either may be null."""
    noise = 1e-14 * want.scale**2
    if want.value is None:
        return got.value is None or abs(got.value) <= 1e-7 * (1.0 + want.scale) or wanted.function == "skew"
    if got.value is None:
        return wanted.function == "skew"
    if wanted.function == "skew":
        return math.isclose(got.value, want.value, rel_tol=1e-6, abs_tol=1e-6) or want.scale > 1e3
    got_square, want_square = (one**2 if wanted.function == "std" else one for one in (got.value, want.value))
    return math.isclose(got_square, want_square, rel_tol=1e-9, abs_tol=noise)
