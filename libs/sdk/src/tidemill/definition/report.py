"""Collects every fault of a definition, so that a person sees them all at once."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

from tidemill_contracts.bounds import MAX_NAME_CHARS
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import Expression, ExpressionError, Schema, compile_expression

from tidemill.declarations.origin import Origin
from tidemill.declarations.unsupported import Unsupported
from tidemill.definition.durations import budget, duration_ms, size_bytes
from tidemill.definition.problems import Problem
from tidemill.definition.source import line_of_text

T = TypeVar("T")

_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")
_STREAM_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_FEATURE_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Report:
    """The faults found so far; its checks return None where they found one."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, origin: Origin, subject: str, message: str, *, line: int = 0, pointer: str = "") -> None:
        """Note a fault; at `line` where that is closer than the declaration's own."""
        problem = Problem(origin.file, line or origin.line, subject, message, pointer)
        if problem not in self.problems:
            self.problems.append(problem)

    def refuse(self, item: Unsupported, subject: str) -> None:
        """Note something that this release does not build."""
        self.add(item.origin, subject, item.message)

    def guarded(self, origin: Origin, subject: str, work: Callable[[], T]) -> T | None:
        """Return what compiling a declaration yields; None, with the fault noted, where nothing foresaw it."""
        try:
            return work()
        except Exception as error:
            self.add(origin, subject, f"it is not understood: {type(error).__name__}: {error!s:.200}")
            return None

    def field(
        self, origin: Origin, subject: str, name: object, schema: Mapping[str, definition.Field], owner: str
    ) -> definition.Field | None:
        """Return the field that a name stands for."""
        if not isinstance(name, str):
            self.add(origin, subject, f"the name of a field is wanted, not {name!r:.80}")
            return None
        if name not in schema:
            self.add(origin, subject, no_field(name, owner, schema), line=line_of_text(origin, name))
            return None
        return schema[name]

    def expression(
        self,
        origin: Origin,
        subject: str,
        text: object,
        schema: Schema,
        owner: str,
        *,
        views: Mapping[str, Schema] = MappingProxyType({}),
    ) -> Expression | None:
        """Return the compiled expression; its line is where the text stands within the declaration.

        `views`: the features that it may read beside the fields, by the name under which a view is looked up.
        """
        line = line_of_text(origin, text)
        if not isinstance(text, str):
            self.add(origin, subject, f"an expression is a string, not {text!r:.80}", line=line)
            return None
        try:
            text.encode()
            return compile_expression(text, schema, owner=owner, views=views)
        except UnicodeEncodeError as error:
            half = ascii(text[error.start : error.end])
            self.add(origin, subject, f"{half} is half of a surrogate pair and no character; leave it out", line=line)
            return None
        except ExpressionError as error:
            self.add(origin, subject, error.message, line=line, pointer=error.pointer())
            return None

    def duration(self, origin: Origin, subject: str, text: object, *, zero: bool = False) -> int | None:
        """Return a duration in milliseconds."""
        length = self._read(duration_ms, origin, subject, text)
        if length == 0 and not zero:
            self.add(origin, subject, "a duration above zero is needed", line=line_of_text(origin, text))
            return None
        return length

    def size(self, origin: Origin, subject: str, text: object) -> int | None:
        """Return a size in bytes, above zero."""
        found = self._read(size_bytes, origin, subject, text)
        if found == 0:
            self.add(origin, subject, "a size above zero is needed", line=line_of_text(origin, text))
            return None
        return found

    def budget(self, origin: Origin, subject: str, text: object) -> tuple[int, int] | None:
        """Return a budget as a count and a period in milliseconds."""
        return self._read(budget, origin, subject, text)

    def _read(self, read: Callable[[object], T], origin: Origin, subject: str, text: object) -> T | None:
        try:
            return read(text)
        except ValueError as error:
            self.add(origin, subject, str(error), line=line_of_text(origin, text))
            return None

    def number(
        self, origin: Origin, subject: str, value: object, *, low: float, high: float, whole: bool = False
    ) -> bool:
        """Say whether a value is a number within bounds, both included."""
        kind = int if whole else int | float
        good = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
        if not good:
            what = "whole number" if whole else "number"
            message = f"a {what} from {low:,.10g} to {high:,.10g} is needed, not {value!r:.80}"
            self.add(origin, subject, message, line=line_of_text(origin, value))
        return good

    def one_of(self, origin: Origin, subject: str, value: object, known: Iterable[str]) -> bool:
        """Say whether a value is among the known ones."""
        names = sorted(known)
        if value in names:
            return True
        self.add(origin, subject, f"{unknown(value, names)}", line=line_of_text(origin, value))
        return False

    def name(self, origin: Origin, subject: str, name: object, *, stream: bool = False) -> bool:
        """Say whether a text can name a stream, view or pipeline."""
        pattern = _STREAM_NAME if stream else _NAME
        if isinstance(name, str) and len(name) <= MAX_NAME_CHARS and pattern.fullmatch(name):
            return True
        letters = "a-z, 0-9 and -" if stream else "a-z, 0-9, - and _"
        self.add(origin, subject, f"{name!r} is no name; use {letters}, at most {MAX_NAME_CHARS} characters")
        return False

    def feature_name(self, origin: Origin, subject: str, name: object) -> bool:
        """Say whether a text can name a feature."""
        if isinstance(name, str) and len(name) <= MAX_NAME_CHARS and _FEATURE_NAME.fullmatch(name):
            return True
        message = f"{name!r} is no feature name; start with a letter and use a-z, 0-9 and _"
        self.add(origin, subject, message, line=line_of_text(origin, name))
        return False


def is_finite(value: object) -> bool:
    """Say whether a value is a number that a 64-bit float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def named(kind: str, name: object) -> str:
    """Return what messages call a declaration; one whose name is no text has none."""
    return f"{kind} {name!r:.80}" if isinstance(name, str) else kind


def unknown(value: object, known: Iterable[str], what: str = "") -> str:
    """Return a sentence for a value that is not among the known ones, with the nearest one."""
    return f"unknown {what + ' ' if what else ''}{value!r}; {nearest(value, known, 'there are')}"


def no_field(name: object, owner: str, fields: Iterable[str]) -> str:
    """Return a sentence for a field that an event does not have, with the nearest one."""
    return f"no field {name!r} in {owner}; {nearest(name, fields, 'it has')}"


def nearest(value: object, known: Iterable[str], otherwise: str) -> str:
    """Return a question for the known value that is nearest; all of them, after `otherwise`, where none is near.

    >>> nearest("maxage", ["by", "max_age"], "it takes"), nearest("size", ["by", "max_age"], "it takes")
    ("did you mean 'max_age'?", 'it takes by, max_age')
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(value), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(names)}"
