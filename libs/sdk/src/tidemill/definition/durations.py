"""Durations, budgets and sizes as people write them."""

import re

from tidemill_contracts.bounds import MAX_MS

UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,9})([smhd])")
UNITS_BYTES = {"B": 1, "kB": 1_000, "MB": 1_000_000, "KiB": 1_024, "MiB": 1_048_576}
_SIZE = re.compile(r"(\d{1,9}) ?(B|kB|MB|KiB|MiB)")
_BUDGET = re.compile(r"(\d{1,6}) per (\S+)")


def duration_ms(text: object) -> int:
    """Return the milliseconds of a duration.

    >>> duration_ms("36h")
    129600000

    Raises `ValueError`, which says how one is written.
    """
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'{text!r} is not a duration; write "30s", "5m", "2h" or "7d"')
    amount = int(found[1]) * UNITS_MS[found[2]]
    if amount > MAX_MS:
        raise ValueError(f"{text!r} is longer than ten years")
    return amount


def budget(text: object) -> tuple[int, int]:
    """Return the count of a budget and its period in milliseconds.

    >>> budget("6 per 90d")
    (6, 7776000000)

    Raises `ValueError`, which says how one is written.
    """
    found = _BUDGET.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'{text!r} is not a budget; write "6 per 90d"')
    return int(found[1]), duration_ms(found[2])


def size_bytes(text: object) -> int:
    """Return the bytes of a size.

    >>> size_bytes("64KiB")
    65536

    Raises `ValueError`, which says how one is written.
    """
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'{text!r} is not a size; write "64KiB" or "1MiB"')
    return int(found[1]) * UNITS_BYTES[found[2]]
