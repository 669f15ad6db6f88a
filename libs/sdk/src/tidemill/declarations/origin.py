"""Where in a user's file something was declared."""

import sys
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


@dataclass(frozen=True, slots=True)
class Origin:
    """A file and a line; line 0 where there is no file."""

    file: str
    line: int


def here() -> Origin:
    """Return the place outside this package (and outside generated code) that is executing now."""
    frame = sys._getframe(1)
    while True:
        file = frame.f_code.co_filename
        if not file.startswith((_PACKAGE, "<")):
            return Origin(file, frame.f_lineno)
        if frame.f_back is None:
            return Origin("<unknown>", 0)
        frame = frame.f_back
