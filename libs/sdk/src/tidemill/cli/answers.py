"""How a command answers: rich on a terminal, plain in a pipe, JSON on request, and one exit code."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.json import JSON
from rich.table import Table

from tidemill.clients.errors import ClientError

DONE, NO, USAGE, NOT_REACHABLE = 0, 1, 2, 3


class RefusedError(Exception):
    """The answer is no, or the command was asked for something that makes no sense; `details` go into JSON."""

    def __init__(self, message: str, code: int = NO, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = dict(details or {})


class Answer:
    """Where a command puts what it found."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.terminal = sys.stdout.isatty() and not as_json
        self._console = Console(highlight=False)

    def json(self, value: Any) -> None:
        """Print the whole answer of a command as one line of JSON."""
        typer.echo(_json(value))

    def say(self, text: str) -> None:
        """Print a line for a person."""
        if not self.as_json:
            typer.echo(text)

    def value(self, value: Any) -> None:
        """Print a value: indented and coloured on a terminal, one line of JSON elsewhere."""
        if self.terminal:
            self._console.print(JSON(_json(value), ensure_ascii=False))
        else:
            self.json(value)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
        """Print rows under their columns; `empty` is said where there are none."""
        if self.as_json:
            return
        if not rows:
            typer.echo(empty)
            return
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        if self.terminal:
            table = Table(box=None, header_style="bold", pad_edge=False)
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in cells:
                table.add_row(*row)
            self._console.print(table)
            return
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        for row in (list(columns), *cells):
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _json(value: Any) -> str:
    """Return a value as JSON, which has no numbers that are not finite: they go by name, as protobuf writes them."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_named(value), ensure_ascii=False, allow_nan=False)


def _named(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: _named(one) for name, one in value.items()}
    return [_named(one) for one in value] if isinstance(value, list | tuple) else value


@contextmanager
def answering(as_json: bool) -> Iterator[Answer]:
    """Give a command its answer, and turn what goes wrong into a message and an exit code."""
    answer = Answer(as_json=as_json)
    try:
        yield answer
    except RefusedError as error:
        _fail(answer, str(error), error.code, error.details)
    except ClientError as error:
        several = error.violations if len(error.violations) > 1 else ()
        details = {"reason": error.reason, "field": error.field, "violations": [list(one) for one in several]}
        message = "\n".join([str(error), *(f"  {field}: {text}" for field, text in several)])
        code = NO if error.reached else NOT_REACHABLE
        _fail(answer, message, code, {name: value for name, value in details.items() if value})


def _fail(answer: Answer, message: str, code: int, details: Mapping[str, Any]) -> None:
    if answer.as_json:
        answer.json({"error": message, **details})
    else:
        typer.echo(message, err=True)
    raise typer.Exit(code)
