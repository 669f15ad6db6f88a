"""push: a file's rows through ingestion, with a verdict for each."""

import hashlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tidemill_contracts.ingestion.v1 import ingestion_pb2

from tidemill.cli.answers import NO, NOT_REACHABLE, USAGE, Answer, RefusedError, answering
from tidemill.cli.rows import Row, Source
from tidemill.cli.targets import DEFAULT_STACK, Home, Ingestion, Json, Registry, StackName, Target
from tidemill.clients.errors import ClientError
from tidemill.clients.ingestion import IngestionClient
from tidemill.clients.publishing import EventStream
from tidemill.clients.registry import RegistryClient

BATCH_ROWS = 500
EXAMPLES = 10


@dataclass
class Tally:
    """What became of the rows so far."""

    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    # Is told every refusal, since only the first are held.
    told: Callable[[dict[str, Any]], object] | None = None

    def note(self, row: int, verdict: ingestion_pb2.Verdict) -> None:
        """Count the verdict of a row."""
        self.rows += 1
        if verdict.outcome == ingestion_pb2.OUTCOME_ACCEPTED:
            self.accepted += 1
        elif verdict.outcome == ingestion_pb2.OUTCOME_DUPLICATE:
            self.duplicates += 1
        else:
            self.refused[verdict.reason] += 1
            why = {"row": row, "reason": verdict.reason, "field": verdict.field, "message": verdict.message}
            if len(self.examples) < EXAMPLES:
                self.examples.append(why)
            if self.told is not None:
                self.told(why)


def identified(row: Row) -> ingestion_pb2.Event:
    """Return the row as an event named by its content, so that sending it again adds nothing."""
    return ingestion_pb2.Event(id=hashlib.sha256(row.data).hexdigest()[:32], data=row.data)


class Sender:
    """Sends rows as they are read; Ctrl-C ends it once what was sent has its verdicts, a second one at once."""

    def __init__(self, client: IngestionClient, stream: str, source: str, tally: Tally) -> None:
        self._client = client
        self._stream = stream
        self._source = source
        # Numbers of the rows that have no verdict yet, by their place in the call.
        self._rows: dict[int, int] = {}
        self._given = 0
        self.tally = tally
        self.interrupted = False
        self._sending = False

    def run(self, batches: Iterable[list[Row]], after: Callable[[Row], None]) -> None:
        """Send every batch; `after` is told the last row of each. Raises `CallError` where ingestion stays away."""
        previous = signal.signal(signal.SIGINT, self._interrupt)
        try:
            with self._client.stream(self._stream, self._source, self._note) as events:
                self._send(batches, events, after)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            signal.signal(signal.SIGINT, previous)

    def _send(self, batches: Iterable[list[Row]], events: EventStream, after: Callable[[Row], None]) -> None:
        try:
            for batch in batches:
                self._sending = True
                self._rows.update(enumerate((row.number for row in batch), self._given))
                self._given += len(batch)
                events.send([identified(row) for row in batch])
                after(batch[-1])
                self._sending = False
                if self.interrupted:
                    return
        except KeyboardInterrupt:
            if self._sending:
                raise
            self.interrupted = True
        self._sending = True

    def _note(self, number: int, verdict: ingestion_pb2.Verdict) -> None:
        self.tally.note(self._rows.pop(number), verdict)

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._sending or self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(rows, size)):
        yield batch


# Each option of a command is one parameter, so this function has more than the usual six.
def push(
    stream: Annotated[str, typer.Argument(help="A registered stream.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="CSV, NDJSON or Parquet; - for standard input.", show_default=False)],
    file_format: Annotated[str | None, typer.Option("--format", help="csv, ndjson or parquet; else by suffix.")] = None,
    null: Annotated[str, typer.Option(help="What a CSV writes for null, besides nothing.")] = "NA",
    source: Annotated[str, typer.Option(help="The events' CloudEvents source.")] = "tidemill/push",
    batch: Annotated[int, typer.Option(min=1, max=5_000, help="Rows per message.")] = BATCH_ROWS,
    refused: Annotated[
        Path | None, typer.Option(help="Write row, reason, field and fix of every refusal here, as NDJSON.")
    ] = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    ingestion: Ingestion = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Send a file's rows to a stream and count every refusal by its reason; exit 1 when there was one."""
    with answering(as_json) as answer:
        rows = Source.of(file, file_format)
        target = Target(stack, home)
        with target.connect("registry", registry) as connection:
            schema = RegistryClient(connection).schema(stream)
        began = time.monotonic()
        with (
            target.connect("ingestion", ingestion) as connection,
            _listing(refused) as told,
            _progress(rows, answer) as advance,
        ):
            sender = Sender(IngestionClient(connection), stream, source, Tally(told=told))
            try:
                sender.run(_batches(rows.rows(schema, null), batch), advance)
            except (ClientError, RefusedError) as error:
                # What could not be read of the file is a `RefusedError`.
                code = NOT_REACHABLE if isinstance(error, ClientError) and not error.reached else NO
                raise RefusedError(f"{error}; {_kept(sender.tally)}", code, _counts(sender, began)) from error
        _report(answer, sender, began)


@contextmanager
def _listing(path: Path | None) -> Iterator[Callable[[dict[str, Any]], object] | None]:
    """Write refusals to a file as they come, a line each."""
    if path is None:
        yield None
        return
    try:
        file = path.open("wb")
    except OSError as error:
        raise RefusedError(f"--refused: {error}", USAGE) from error
    with file:
        yield lambda why: file.write(json.dumps(why).encode() + b"\n")


@contextmanager
def _progress(source: Source, answer: Answer) -> Iterator[Callable[[Row], None]]:
    """Show how far the file is and how long it will take, on a terminal."""
    console = Console(stderr=True)
    if answer.as_json or not console.is_terminal:
        yield lambda _row: None
        return
    columns = (
        TextColumn(source.path.name),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("push", total=source.size, rows=0, rate=0.0)

        def advance(row: Row) -> None:
            rate = row.number / max(time.monotonic() - began, 1e-9)
            progress.update(task, completed=row.position, rows=row.number, rate=rate)

        yield advance


def _counts(sender: Sender, began: float) -> dict[str, Any]:
    tally = sender.tally
    seconds = time.monotonic() - began
    return {
        "rows": tally.rows,
        "accepted": tally.accepted,
        "duplicates": tally.duplicates,
        "refused": dict(tally.refused),
        "examples": tally.examples,
        "interrupted": sender.interrupted,
        "seconds": round(seconds, 3),
        "rows_per_s": round(tally.rows / max(seconds, 1e-9), 1),
    }


def _kept(tally: Tally) -> str:
    return (
        f"{tally.accepted:,} of {tally.rows:,} rows sent are kept, {tally.duplicates:,} were there already, "
        f"{tally.refused.total():,} refused"
    )


def _report(answer: Answer, sender: Sender, began: float) -> None:
    tally = sender.tally
    if answer.as_json:
        answer.json(_counts(sender, began))
    else:
        stopped = "stopped; send the whole file again, each event is counted once: " if sender.interrupted else ""
        answer.say(f"{stopped}{_kept(tally)} ({time.monotonic() - began:.1f} s)")
        if tally.refused:
            answer.table(("reason", "rows"), tally.refused.most_common(), "")
            rows = [list(example.values()) for example in tally.examples]
            answer.table(("row", "reason", "field", "what to do"), rows, "")
            if more := tally.refused.total() - len(rows):
                answer.say(f"and {more:,} more; --refused FILE lists them all")
    if tally.refused or sender.interrupted:
        raise typer.Exit(NO)
