"""How hard a law is tried: with all its examples, or with a share of them where somebody waits for the answer."""

import os

SHARE_VARIABLE = "TIDEMILL_TEST_SHARE"
FEWEST = 5


def examples(full: int) -> int:
    """Return how many examples to try: `full`, or the part of it that TIDEMILL_TEST_SHARE says.

    `make check` tries a third of them, drawn anew each time; `make test` tries them all.
    """
    return max(min(full, FEWEST), round(full * float(os.environ.get(SHARE_VARIABLE, "1"))))
