"""`tidemill demo`: a year of real flights through the whole loop."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tidemill_contracts.definition.v1 import definition_pb2

from tidemill.cli.answers import RefusedError, answering
from tidemill.definition import DefinitionError, compile_file
from tidemill.demo.flights import STREAMS
from tidemill.demo.run import STACK_FOLDER, Options, run
from tidemill.stack.spec import StackError


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def print_summary(report: dict[str, Any], out: Path, console: Console) -> None:
    """Print what a person wants to know of a finished run."""
    table = Table(title="the year, everything after the first model", title_justify="left")
    for heading in ("", "adaptive", "static"):
        table.add_column(heading, justify="left" if not heading else "right")
    for metric in ("log_loss", "roc_auc"):
        table.add_row(metric, _figure(report[metric]["adaptive"]), _figure(report[metric]["static"]))
    console.print(table)
    labels = report["labels"]
    console.print(
        f"{sum(report['events'].values()):,} events and {report['predictions']:,} predictions "
        f"in {report['seconds']:.0f} s ({report['events_per_s']:,} events/s); "
        f"labels: {labels['joined']:,} joined, {labels['pending']:,} pending, {labels['never']:,} never; "
        f"failed predictions: {report['failed_predictions']}"
    )
    console.print(
        f"{len(report['incidents'])} incidents, retrainings {report['retrainings']}, "
        f"{len(report['promotions'])} promotions, {report['rollbacks']} rollbacks"
    )
    for step in report["evidence_chain"]:
        console.print("  → " + str(step.get("summary") or f"run {step.get('run_id')}: {step.get('status')}"))
    console.print(f"report: {out / 'report.json'}   chart: {out / 'chart.png'}")


def demo(
    *,
    days: Annotated[int, typer.Option(min=30, max=366, help="how much of the year to replay")] = 366,
    twin: Annotated[bool, typer.Option("--twin", help="shuffle the days, so that nothing drifts")] = False,
    twin_seed: Annotated[int, typer.Option(help="which shuffle")] = 1,
    break_challenger: Annotated[
        bool, typer.Option("--break-challenger", help="train one challenger on flipped labels, past its gates")
    ] = False,
    hop_delay_ms: Annotated[int, typer.Option(help="test flag: a random delay in every hop, up to this many ms")] = 0,
    definition: Annotated[Path, typer.Option(help="the pipeline's definition file")] = Path(
        "docs/examples/flights/flights.py"
    ),
    out: Annotated[Path, typer.Option(help="where report, chart and the stack's data go")] = Path("build/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="leave the stack running afterwards")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Watch a year of real flights go through the whole loop, from event to drift to promoted model."""
    console = Console(stderr=as_json)
    options = Options(
        out=out.absolute(),
        days=days,
        twin_seed=twin_seed if twin else None,
        break_challenger=break_challenger,
        hop_delay_ms=hop_delay_ms,
        keep_stack=keep,
    )
    with answering(as_json) as answer:
        compiled = _compiled(definition)
        try:
            report = run(options, compiled, console)
        except StackError as error:
            raise RefusedError(str(error)) from error
        if as_json:
            answer.json(report)
        else:
            print_summary(report, out, console)
        if keep:
            home = shlex.quote(str(out / STACK_FOLDER))
            console.print(
                f"the stack runs on: `tidemill status --home {home}`, and so every command that talks to it; "
                f"`tidemill down --home {home}` stops it",
                soft_wrap=True,
            )


def _compiled(file: Path) -> definition_pb2.Definition:
    """Return what the file declares. Raises `RefusedError` where it is not for the streams that are replayed."""
    try:
        compiled = compile_file(file)
    except DefinitionError as error:
        raise RefusedError(f"{error}\nrun the demo in a checkout of Tidemill, or give --definition") from error
    missing = set(STREAMS) - {stream.name for stream in compiled.streams}
    if missing or len(compiled.pipelines) != 1:
        wanted = f"one pipeline over the streams {', '.join(STREAMS)}"
        raise RefusedError(f"{file} cannot be replayed: {wanted} is wanted, as docs/examples/flights/flights.py has it")
    return compiled
