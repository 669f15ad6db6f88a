"""What is registered: a fold of `registry.pipelines.v1` into streams, views and pipelines by name."""

from dataclasses import dataclass, field

from tidemill_contracts.canonical import from_json, view_hash
from tidemill_contracts.definition.v1 import definition_pb2 as definition


@dataclass
class Catalogue:
    """Registered objects by name; `fold` takes the topic's records in order."""

    streams: dict[str, definition.Stream] = field(default_factory=dict)
    views: dict[str, definition.View] = field(default_factory=dict)
    pipelines: dict[str, definition.Pipeline] = field(default_factory=dict)
    # Hash of the record that registered the pipeline.
    pipeline_hashes: dict[str, str] = field(default_factory=dict)
    # Names of views that were retired and not registered again since.
    retired: set[str] = field(default_factory=set)

    def fold(self, value: bytes | None) -> definition.DefinitionRecord | None:
        """Take in one record's value; None for a tombstone, which changes nothing.

        Raises `ValueError` where the bytes are no DefinitionRecord.
        """
        if not value:
            return None
        record = from_json(value, definition.DefinitionRecord())
        if record.retired:
            self._end(record)
            return record
        self.streams.update((stream.name, stream) for stream in record.definition.streams)
        self.views.update((view.name, view) for view in record.definition.views)
        self.retired.difference_update(view.name for view in record.definition.views)
        for pipeline in record.definition.pipelines:
            self.pipelines[pipeline.name] = pipeline
            self.pipeline_hashes[pipeline.name] = record.hash
        return record

    def _end(self, record: definition.DefinitionRecord) -> None:
        if record.kind == "view":
            self.views.pop(record.name, None)
            self.retired.add(record.name)
        elif record.kind == "stream":
            self.streams.pop(record.name, None)
        else:
            self.pipelines.pop(record.name, None)
            self.pipeline_hashes.pop(record.name, None)

    def view_hash(self, name: str) -> str:
        """Return the hash that names the view's rings."""
        view = self.views[name]
        return view_hash(view, self.streams[view.stream])

    def streams_of(self, pipeline: definition.Pipeline) -> list[str]:
        """Return, sorted, every stream that the pipeline reads: request, label and views."""
        views = [source.view.view for source in pipeline.features if source.HasField("view")]
        return sorted({pipeline.request, pipeline.label.stream, *(self.views[name].stream for name in views)})
