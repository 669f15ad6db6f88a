"""dataset: a pipeline's training set as a file, made by the code that training runs use."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pyiceberg.exceptions import NoSuchTableError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import OperationalError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us
from tidemill_contracts.topics import events_topic
from tidemill_features.archive import PREDICTIONS_TOPIC
from tidemill_features.dataset_file import SUFFIXES, Lineage, write_dataset
from tidemill_features.iceberg import Archive
from tidemill_features.log_reader import fields_of, read_inputs
from tidemill_features.training_set import TrainingSet, TrainingSetError, Window

from tidemill.cli.answers import NO, NOT_REACHABLE, USAGE, Answer, RefusedError, answering
from tidemill.cli.explanations import shown_duration
from tidemill.cli.following import unarchived
from tidemill.cli.scalars import instant_us
from tidemill.cli.targets import DEFAULT_STACK, Home, Json, Registry, StackName, Target
from tidemill.clients.registry import RegistryClient


def dataset(
    pipeline: Annotated[str, typer.Argument(help="A registered pipeline.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write: .parquet or .arrow (IPC).", show_default=False),
    ],
    from_: Annotated[
        str | None, typer.Option("--from", help="First instant of a row; the definition's training window unless told.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Rows before it, and labels up to it; all that is archived unless told.")
    ] = None,
    stack: StackName = DEFAULT_STACK,
    home: Home = None,
    registry: Registry = None,
    catalogue: Annotated[
        str | None,
        typer.Option(help="PostgreSQL DSN of the Iceberg catalogue.", envvar="TIDEMILL_CATALOGUE", show_default=False),
    ] = None,
    warehouse: Annotated[
        str | None, typer.Option(help="Folder of the Iceberg tables.", envvar="TIDEMILL_WAREHOUSE", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the point-in-time training set of a pipeline, with its lineage in the file's metadata.

    What was sent before counts: the offline log is asked to take it in, and waited for.
    """
    with answering(as_json) as answer:
        if output.suffix.lower() not in SUFFIXES:
            raise RefusedError(f"{output.name}: a dataset ends in {', '.join(sorted(SUFFIXES))}", USAGE)
        if output.is_dir():
            raise RefusedError(f"{output} is a folder; name a file", USAGE)
        if not output.absolute().parent.is_dir():
            raise RefusedError(f"there is no folder {output.absolute().parent}", USAGE)
        target = Target(stack, home)
        with target.connect("registry", registry) as connection:
            record = RegistryClient(connection).definition("pipeline", pipeline)
        began = time.monotonic()
        topics = [PREDICTIONS_TOPIC, *map(events_topic, sorted(fields_of(record.definition)))]
        # A log that is named by hand need not be this stack's.
        waits = {} if catalogue or warehouse else unarchived(target, topics)
        try:
            archive = Archive(*target.archive(catalogue, warehouse))
            window = window_of(archive, record.definition, instant_us(from_), instant_us(to))
            inputs = read_inputs(archive, record.definition, window, {})
            rows = TrainingSet(record.definition, inputs.logs, inputs.predicted, window)
            why = why_empty(archive, record.definition.pipelines[0], rows, window)
        except OperationalError as error:
            raise RefusedError(f"the Iceberg catalogue does not answer: {error.orig}", NOT_REACHABLE) from error
        except (TrainingSetError, NoSuchTableError) as error:
            raise RefusedError(str(error), NO) from error
        lineage = Lineage(pipeline, record.hash, inputs.snapshots, window.from_us, window.until_us)
        with _progress(answer, output.name, len(rows)) as advance:
            size = write_dataset(rows, lineage, output, advance)
        counts = {"rows": len(rows), "features": len(rows.names), "bytes": size}
        seconds = round(time.monotonic() - began, 3)
        if as_json:
            found = {"path": str(output), **counts, "seconds": seconds, "lineage": lineage.to_json(), "behind": waits}
            answer.json(found | ({"message": why} if why else {}))
        answer.say(
            f"{output}: {len(rows):,} rows of {len(rows.names)} features, {format_us(window.from_us)} to "
            f"{format_us(window.until_us)}, in {seconds:.1f} s\n{lineage.id}"
        )
        for line in [*filter(None, [why]), *(f"what came last may be missing: {late}" for late in waits.values())]:
            answer.say(line)


def window_of(archive: Archive, closure: definition.Definition, from_us: int | None, to_us: int | None) -> Window:
    """Return the rows' window: up to the newest event unless told, as long as the definition's unless told."""
    pipeline = closure.pipelines[0]
    if to_us is None:
        tables = [archive.table(events_topic(name)) for name in {pipeline.request, pipeline.label.stream}]
        newest = [table.newest("_event_us") for table in tables if table is not None]
        to_us = max((one for one in newest if one is not None), default=-1) + 1
        if not to_us:
            raise RefusedError(f"nothing of {pipeline.name!r} is archived yet", NO)
    if from_us is None:
        from_us = to_us - pipeline.train.window_ms * 1000
    if from_us >= to_us:
        raise RefusedError("--from lies at or after --to", USAGE)
    return Window(from_us, to_us)


def why_empty(archive: Archive, pipeline: definition.Pipeline, rows: TrainingSet, window: Window) -> str:
    """Say why a window has no rows, for want of requests or of their labels; nothing where it has some."""
    if len(rows):
        return ""
    if not rows.requests:
        return (
            f"no rows: no request lies in the window, {format_us(window.from_us)} to {format_us(window.until_us)}; "
            f"{_archived(archive, pipeline.request)}"
        )
    wait = shown_duration(pipeline.label.wait_ms * 1000)
    lacking = (
        f"has waited for its label, which takes {wait}, by"
        if pipeline.label.HasField("absent")
        else f"has a label, which comes within {wait} of the request and up to"
    )
    return (
        f"no rows: none of the requests in the window ({rows.requests:,}) {lacking} {format_us(window.until_us)}; "
        f"{_archived(archive, pipeline.label.stream)}"
    )


def _archived(archive: Archive, stream: str) -> str:
    table = archive.table(events_topic(stream))
    ends = () if table is None else (table.oldest("_event_us"), table.newest("_event_us"))
    known = [format_us(one) for one in ends if one is not None]
    return (
        f"events of {stream} are archived of {' to '.join(known)}" if known else f"nothing of {stream} is archived yet"
    )


@contextmanager
def _progress(answer: Answer, name: str, rows: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if answer.as_json or not console.is_terminal:
        yield lambda _rows: None
        return
    columns = (TextColumn(name), BarColumn(), TextColumn("{task.completed:,} rows"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("dataset", total=rows)
        yield lambda done: progress.update(task, completed=done)
