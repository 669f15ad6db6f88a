"""The offline log, read for one run: up to the run's positions."""

from tidemill_features.iceberg import Archive
from tidemill_features.log_reader import Inputs, read_inputs

from tidemill_training.spec import RunSpec


def read_run(spec: RunSpec) -> Inputs:
    """Read what the run's rows, features and labels rest on. Raises what pyiceberg and the catalogue raise."""
    limits = {(place.topic, place.partition): place.next_offset for place in spec.request.positions}
    archive = Archive(spec.places.catalogue, spec.places.warehouse)
    return read_inputs(archive, spec.record.definition, spec.window, limits)
