"""Runs a user's definition file on its own and hands back what it declares."""

import ast
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import tidemill
from tidemill.definition.problems import DefinitionError, Problem
from tidemill.definition.report import nearest, unknown
from tidemill.definition.source import forget_sources, repeated

MAX_FILE_BYTES = 1_000_000
_UNEXPECTED_KEYWORD = re.compile(r"(?P<call>\w+)\(\) got an unexpected keyword argument '(?P<keyword>\w+)'")


def load(path: Path) -> dict[str, Any]:
    """Return the namespace that the file leaves behind.

    Raises `DefinitionError` where the file cannot be read or run.
    """
    forget_sources()
    file = str(path.absolute())
    try:
        source = path.read_bytes()
    except OSError as error:
        raise DefinitionError([Problem(file, 0, "", f"cannot be read: {error.strerror}")]) from None
    if len(source) > MAX_FILE_BYTES:
        raise DefinitionError([Problem(file, 0, "", f"is larger than {MAX_FILE_BYTES:,} bytes")])
    try:
        tree = ast.parse(source, file)
        code = compile(tree, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 0) or 0
        raise DefinitionError([Problem(file, line, "", f"not Python: {getattr(error, 'msg', error)}")]) from None
    twice = [
        Problem(file, line, "", f"{name!r} stands here again, after line {first}; Python keeps the last: rename one")
        for line, name, first in repeated(tree)
    ]
    if twice:
        raise DefinitionError(twice)
    module = ModuleType(f"tidemill_definition_{abs(hash(file)):x}")
    module.__file__ = file
    with _importable(module, path.absolute().parent):
        try:
            exec(code, module.__dict__)  # noqa: S102 - a definition is Python; its user runs it on their own machine
        except (Exception, SystemExit) as error:
            raise DefinitionError([_problem(file, error)]) from error
    return module.__dict__


def _problem(file: str, error: BaseException) -> Problem:
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == file), 0)
    text = str(error).replace(".__init__()", "()").replace("__init_subclass__()", "class")
    if isinstance(error, AttributeError) and error.obj is tidemill:
        return Problem(file, line, "", f"tidemill: {unknown(error.name, tidemill.__all__)}")
    named = isinstance(error, TypeError) and text
    return Problem(file, line, "", f"{text}{_keyword_hint(text)}" if named else f"{type(error).__name__}: {text}")


def _keyword_hint(text: str) -> str:
    """Return what one of our own calls takes instead of a keyword that Python says it does not; else nothing."""
    found = _UNEXPECTED_KEYWORD.fullmatch(text)
    if found is None or found["call"] not in tidemill.__all__:
        return ""
    taken = inspect.signature(getattr(tidemill, found["call"])).parameters.keys() - {"origin"}
    return f"; {nearest(found['keyword'], taken, 'it takes')}"


@contextmanager
def _importable(module: ModuleType, folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, and forget them afterwards, so that the next check reads them anew."""
    known = set(sys.modules)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(folder))
    wrote_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote_bytecode
        sys.path.remove(str(folder))
        # The file's own module stays: the annotations of its classes are looked up through it.
        for name in set(sys.modules) - known - {module.__name__}:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder:
                del sys.modules[name]
