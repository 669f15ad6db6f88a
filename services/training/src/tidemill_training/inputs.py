"""Which topics of the log a run reads; pure."""

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.topics import events_topic

PREDICTIONS = "serving.predictions.v1"


def streams_of(closure: definition.Definition) -> list[str]:
    """Return, sorted, the streams that a pipeline reads, given with everything that it refers to."""
    pipeline = closure.pipelines[0]
    views = {view.name: view.stream for view in closure.views}
    looked_up = (views[source.view.view] for source in pipeline.features if source.HasField("view"))
    return sorted({pipeline.request, pipeline.label.stream, *looked_up})


def topics_of(closure: definition.Definition) -> list[str]:
    """Return the topics whose positions decide a run's rows."""
    return [*map(events_topic, streams_of(closure)), PREDICTIONS]
