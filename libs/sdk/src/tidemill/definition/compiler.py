"""From a definition file to its canonical message."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill.declarations.events import Event
from tidemill.declarations.origin import Origin
from tidemill.declarations.pipelines import Pipeline
from tidemill.declarations.views import Lookup, View
from tidemill.definition.loading import load
from tidemill.definition.pipelines import Pipelines
from tidemill.definition.problems import DefinitionError, Problem
from tidemill.definition.report import Report
from tidemill.definition.streams import Streams
from tidemill.definition.views import Views


def compile_file(path: Path) -> definition.Definition:
    """Return what a definition file declares: streams, views and pipelines, sorted by name, expressions canonical.

    The file is run, and nothing else happens. Raises `DefinitionError` with every fault found.
    """
    return compile_namespace(load(path), str(path.absolute()))


def compile_namespace(namespace: Mapping[str, Any], file: str) -> definition.Definition:
    """Return what the values of a namespace declare; `file` is where faults of the whole are reported."""
    report = Report()
    streams = Streams(report)
    views = Views(report, streams)
    pipelines = Pipelines(report, streams, views)
    values = list(namespace.values())
    events = [value for value in values if isinstance(value, type) and issubclass(value, Event) and value is not Event]
    for event in events:
        options = event.__tidemill__
        # A class without a stream lends its fields to others; one that lends them to nobody was forgotten.
        if options is not None and (options.stream is not None or not event.__subclasses__()):
            streams.get(event, options.origin, "")
    for view in _distinct(values, View):
        views.get(view)
    found = [pipelines.compile(pipeline) for pipeline in _distinct(values, Pipeline)]
    if not report.problems and not events:
        report.add(Origin(file, 0), "", "it declares no event, so there is nothing to register")
    if report.problems:
        raise DefinitionError(sorted(report.problems, key=_place))
    kept = sorted((item for item in found if item is not None), key=lambda pipeline: pipeline.name)
    return definition.Definition(streams=streams.all(), views=views.all(), pipelines=kept)


def _distinct(values: list[Any], kind: type[Any]) -> list[Any]:
    """Return the values of a kind in order, each once, whatever number of names it has."""
    found = {id(value): value for value in values if isinstance(value, kind)}
    if kind is View:
        found |= {id(value.view): value.view for value in values if isinstance(value, Lookup)}
    return list(found.values())


def _place(problem: Problem) -> tuple[str, int]:
    return problem.file, problem.line
