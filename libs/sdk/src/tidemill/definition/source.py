"""Finds the line of a part of a declaration, so that a message names the line to edit."""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tidemill.declarations.origin import Origin

Statement = ast.Call | ast.ClassDef
Part = ast.Constant | ast.AnnAssign | ast.keyword


@cache
def _statements(file: str) -> tuple[Statement, ...]:
    """Return every call and class of a file; none where the file cannot be read again."""
    try:
        tree = ast.parse(Path(file).read_text())
    except (OSError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, Statement))


def _line(origin: Origin, wanted: Callable[[Part], bool]) -> int:
    for statement in _statements(origin.file):
        if statement.lineno == origin.line:
            for node in ast.walk(statement):
                if isinstance(node, Part) and wanted(node):
                    return node.lineno
    return origin.line


def line_of_text(origin: Origin, text: object) -> int:
    """Return the line of a constant within the call at `origin`; the call's own where it is not spelt out there."""
    return _line(origin, lambda node: isinstance(node, ast.Constant) and node.value == text)


def line_of_keyword(origin: Origin, name: str) -> int:
    """Return the line of a keyword argument of the call at `origin`."""
    return _line(origin, lambda node: isinstance(node, ast.keyword) and node.arg == name)


def line_of_field(origin: Origin, name: str) -> int:
    """Return the line of an annotated name within the class at `origin`."""

    def wanted(node: Part) -> bool:
        return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name

    return _line(origin, wanted)


def forget_sources() -> None:
    """Read files anew from here on."""
    _statements.cache_clear()
