"""Definition files checked and compiled: `compile_file(path)`."""

from tidemill.definition.compiler import compile_file
from tidemill.definition.problems import DefinitionError, Problem

__all__ = ["DefinitionError", "Problem", "compile_file"]
