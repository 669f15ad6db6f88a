"""Finds the line of a part of a declaration, so that a message names the line to edit, and what stands twice."""

import ast
from collections.abc import Callable, Iterator
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


def repeated(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """Yield what stands twice, as a key of one dictionary or a field of one class, with its line and that of the first.

    Of two Python keeps the last, and says nothing.
    """
    for node in ast.walk(tree):
        first: dict[str, int] = {}
        for name, line in _names(node):
            if name in first:
                yield line, name, first[name]
            first.setdefault(name, line)


def _names(node: ast.AST) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Dict):
        for key in node.keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, key.lineno
    elif isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                yield part.target.id, part.lineno


def forget_sources() -> None:
    """Read files anew from here on."""
    _statements.cache_clear()
