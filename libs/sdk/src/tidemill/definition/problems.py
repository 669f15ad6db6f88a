"""What is wrong with a definition file: where, with what, and how to put it right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault; `pointer` shows the text at fault with a caret, where there is one."""

    file: str
    line: int
    subject: str
    message: str
    pointer: str = ""

    @property
    def sentence(self) -> str:
        """The fault in one line: `flights.py:31: view 'origin': feature 'mean_delay': no field …`."""
        subject = f"{self.subject}: " if self.subject else ""
        return f"{shown(self.file)}:{self.line}: {subject}{self.message}"

    def to_json(self) -> dict[str, str | int]:
        return {"file": shown(self.file), "line": self.line, "subject": self.subject, "message": self.message}


class DefinitionError(ValueError):
    """A definition file that cannot be used; `problems` holds every fault that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(problem.sentence for problem in problems))
        self.problems = tuple(problems)


def shown(file: str) -> str:
    """Return the path as a person here would write it."""
    path, folder = Path(file), Path.cwd()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else file
