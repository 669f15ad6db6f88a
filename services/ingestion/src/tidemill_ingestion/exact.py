"""JSON as it was written: what faster decoders round or reject is still there to be named; pure."""

import json
import sys
from typing import Any

# Python converts no longer texts; whoever refuses an integer beyond 64 bits or float64 refuses this one too.
_BEYOND = 10**400


def loads(text: str) -> Any:
    """Return decoded JSON with whole integers, NaN and lone surrogates. Raises `ValueError` and `RecursionError`.

    An integer too long for Python stands as one that is too large for everybody else.

    >>> loads('{"a": 1208925819614629174706176, "b": NaN}'), loads("-" + "9" * 10_000) == -(10**400)
    ({'a': 1208925819614629174706176, 'b': nan}, True)
    """
    return json.loads(text, parse_int=_integer)


def _integer(text: str) -> int:
    limit = sys.get_int_max_str_digits()
    if not limit or len(text) <= limit:
        return int(text)
    return -_BEYOND if text[0] == "-" else _BEYOND
