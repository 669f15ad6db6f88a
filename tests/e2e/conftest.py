"""A slice of the demo on the real stack, short enough to be lived several times in one session."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tidemill.definition import compile_file
from tidemill.demo.run import Options, run, undisturbed
from tidemill.stack import Stack
from tidemill_contracts.definition.v1 import definition_pb2 as definition

FLIGHTS = Path(__file__).parents[2] / "docs/examples/flights/flights.py"
DAY_MS = 24 * 3_600_000
OPTIONS = Options(out=Path(), days=24, first_model_days=12)


def slice_definition() -> definition.Definition:
    """Return the flights' definition with a schedule, rollout and wait short enough for a slice of it."""
    compiled = compile_file(FLIGHTS)
    pipeline = compiled.pipelines[0]
    pipeline.train.min_rows = 1_000
    for trigger in pipeline.retrain.on:
        if trigger.HasField("every"):
            trigger.every.period_ms = 4 * DAY_MS
    pipeline.retrain.cooldown_ms = DAY_MS
    for step in pipeline.rollout:
        step.duration_ms = DAY_MS // 4
        step.min_labels = 50
    return compiled


@dataclass(frozen=True)
class Lived:
    """One finished run."""

    report: dict[str, Any]
    sample: list[dict[str, Any]]
    out: Path


Live = Callable[..., Lived]


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """Return a function that lives the slice once: `live(name, each_hour=…, **options)`."""

    def lived(name: str, each_hour: Callable[[Stack, int], None] = undisturbed, **options: Any) -> Lived:
        out = tmp_path_factory.mktemp(name)
        report = run(replace(OPTIONS, out=out, **options), slice_definition(), Console(), each_hour)
        return Lived(report, json.loads((out / "sample.json").read_text()), out)

    return lived


@pytest.fixture(scope="session")
def undisturbed_run(live: Live) -> Lived:
    """The slice, lived once with nothing broken: what every other run has to equal."""
    return live("undisturbed")
